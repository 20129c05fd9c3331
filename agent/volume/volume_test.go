package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"orch/agent/objects/objectstest"
)

// world is a manager on a directory of the test's own.
type world struct {
	*Manager
	t   *testing.T
	api *objectstest.API
	dir string
}

func newWorld(t *testing.T, objects ...runtime.Object) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts and owners need root")
	}
	w := &world{t: t, api: objectstest.New(objects...), dir: t.TempDir()}
	w.api.Token = func(_ int, r *authenticationv1.TokenRequest) error {
		r.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(time.Hour))
		return nil
	}
	w.restart()
	t.Cleanup(func() {
		if err := removeTree(w.dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// restart forgets all that is in memory, as after kill -9.
func (w *world) restart() {
	ctx, cancel := context.WithCancel(context.Background())
	m := New(Config{Dir: w.dir, Client: w.api, Logger: slog.New(slog.DiscardHandler), Node: machine})
	var running errgroup.Group
	running.Go(func() error { return m.Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			w.t.Error(err)
		}
	})
	w.Manager = m
}

func machine() *corev1.Node {
	return &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1800m"), corev1.ResourceMemory: resource.MustParse("1Gi"),
	}}}
}

// podWith gives a pod whose only container mounts each volume at /<name>.
func podWith(volumes ...corev1.Volume) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "web", UID: "4f1c", Labels: map[string]string{"app": "web"}, Generation: 1,
	}}
	c := corev1.Container{Name: "main"}
	for i := range volumes {
		if volumes[i].Name == "" {
			volumes[i].Name = fmt.Sprintf("v%d", i)
		}
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volumes[i].Name, MountPath: "/" + volumes[i].Name})
	}
	p.Spec = corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{c}, ServiceAccountName: "default"}
	return p
}

func (w *world) prepare(p *corev1.Pod) map[string]string {
	w.t.Helper()
	w.Observe(p)
	mounts, err := w.Prepare(w.t.Context(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	paths := map[string]string{}
	for name, m := range mounts {
		paths[name] = m.HostPath
	}
	return paths
}

// tree lists what a container sees in dir: mode, owner and content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case strings.HasPrefix(name, "..") && entry.IsDir():
			return fs.SkipDir
		case strings.HasPrefix(name, ".."):
			return nil
		}
		line, err := describe(filepath.Join(dir, name), name)
		lines = append(lines, line)
		return err
	})
	if os.IsNotExist(err) {
		return "an update is under way"
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func describe(path, name string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	line := fmt.Sprintf("%v %d:%d %s", info.Mode(), st.Uid, st.Gid, name)
	if !info.IsDir() {
		data, err := os.ReadFile(path)
		return fmt.Sprintf("%s %q", line, data), err
	}
	if link, err := os.Lstat(path); err != nil || link.Mode()&fs.ModeSymlink == 0 {
		return line, err
	}
	entries, err := os.ReadDir(path) // WalkDir does not follow the link
	for _, e := range entries {
		line += " " + e.Name()
	}
	return line, err
}

func ptr[T any](v T) *T { return &v }

func ref(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

var (
	settings = &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "settings"},
		Data:       map[string]string{"color": "red", "size": "9"}, BinaryData: map[string][]byte{"blob": {0, 1}},
	}
	password = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "password"}, Data: map[string][]byte{"key": []byte("s3cret")},
	}
)

func TestContent(t *testing.T) {
	field := func(path, field string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}
	}
	amount := func(path, name, divisor string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, ResourceFieldRef: &corev1.ResourceFieldSelector{
			ContainerName: "main", Resource: name, Divisor: resource.MustParse(divisor),
		}}
	}
	projected := func(sources ...corev1.VolumeProjection) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o440)), Sources: sources}}
	}
	token := corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}
	user := func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000))} }
	group := func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))} }

	for name, c := range map[string]struct {
		source corev1.VolumeSource
		change func(*corev1.Pod)
		want   string // of tree
		err    string
	}{
		"config map": {
			source: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("settings")}},
			want:   "-rw-r--r-- 0:0 blob \"\\x00\\x01\"\n-rw-r--r-- 0:0 color \"red\"\n-rw-r--r-- 0:0 size \"9\"",
		},
		"items and modes": {
			source: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: ref("settings"), DefaultMode: ptr(int32(0o400)),
				Items: []corev1.KeyToPath{{Key: "color", Path: "deep/er/./color"}, {Key: "size", Path: "size", Mode: ptr(int32(0o777))}},
			}},
			want: "drwxr-xr-x 0:0 deep er\n-rwxrwxrwx 0:0 size \"9\"",
		},
		"missing key": {
			source: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("settings"), Items: []corev1.KeyToPath{{Key: "nope", Path: "x"}}}},
			err:    `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: nope`,
		},
		"missing key of secret": {
			source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password", Items: []corev1.KeyToPath{{Key: "nope", Path: "x"}}}},
			err:    `MountVolume.SetUp failed for volume "v" : references non-existent secret key: nope`,
		},
		"optional key": {
			source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password", Optional: ptr(true), Items: []corev1.KeyToPath{{Key: "nope", Path: "x"}}}},
		},
		"missing config map": {
			source: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("nope")}},
			err:    `MountVolume.SetUp failed for volume "v" : configmap "nope" not found`,
		},
		"missing secret": {
			source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "nope"}},
			err:    `MountVolume.SetUp failed for volume "v" : secret "nope" not found`,
		},
		"optional secret": {
			source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "nope", Optional: ptr(true)}},
		},
		"fsGroup may read": {
			source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password", DefaultMode: ptr(int32(0o400))}},
			change: group, want: "-r--r----- 0:2000 key \"s3cret\"",
		},
		"downward API": {
			source: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				field("name", "metadata.name"), field("labels", "metadata.labels"), field("app", "metadata.labels['app']"),
				amount("cores", "limits.cpu", "1"), amount("milli", "limits.cpu", "1m"), amount("mem", "limits.memory", "1Mi"), amount("asked", "requests.memory", "1Ki"),
			}}},
			change: func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources = corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1500")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				}
			},
			want: "-rw-r--r-- 0:0 app \"web\"\n-rw-r--r-- 0:0 asked \"2\"\n-rw-r--r-- 0:0 cores \"2\"\n-rw-r--r-- 0:0 labels \"app=\\\"web\\\"\"\n" +
				"-rw-r--r-- 0:0 mem \"64\"\n-rw-r--r-- 0:0 milli \"1800\"\n-rw-r--r-- 0:0 name \"web\"",
		},
		"unknown field": {
			source: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{field("x", "status.podIP")}}},
			err:    `MountVolume.SetUp failed for volume "v" : unsupported fieldPath: status.podIP`,
		},
		"projected": {
			source: projected(
				corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("settings"), Items: []corev1.KeyToPath{{Key: "color", Path: "both"}}}},
				corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: ref("password"), Items: []corev1.KeyToPath{{Key: "key", Path: "both"}}}},
				corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{field("namespace", "metadata.namespace")}}},
				token),
			want: "-r--r----- 0:0 both \"s3cret\"\n-r--r----- 0:0 namespace \"ns\"\n-r--r----- 0:0 token \"token-1\"",
		},
		"token for one user":   {source: projected(token), change: user, want: "-rw------- 1000:0 token \"token-1\""},
		"token for a group":    {source: projected(token), change: group, want: "-rw-r----- 0:2000 token \"token-1\""},
		"cluster trust bundle": {source: projected(corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}), err: `MountVolume.SetUp failed for volume "v" : ClusterTrustBundle projection is not supported on this node`},
		"pod certificate":      {source: projected(corev1.VolumeProjection{PodCertificate: &corev1.PodCertificateProjection{}}), err: `MountVolume.SetUp failed for volume "v" : PodCertificate projection is not supported on this node`},
		"path that leads out":  {source: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password", Items: []corev1.KeyToPath{{Key: "key", Path: "../x"}}}}, err: `MountVolume.SetUp failed for volume "v" : invalid path: must be relative and stay inside the volume: ../x`},
		"unknown kind":         {source: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, err: `MountVolume.SetUp failed for volume "v" : this kind of volume is not supported on this node`},
		"image, the runtime's": {source: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "x"}}},
		"huge pages are not for us": {source: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages-2Mi"}},
			err: `MountVolume.SetUp failed for volume "v" : storage medium "HugePages-2Mi" is not supported: this node serves no volumes of huge pages`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, settings.DeepCopy(), password.DeepCopy())
			p := podWith(corev1.Volume{Name: "v", VolumeSource: c.source})
			if c.change != nil {
				c.change(p)
			}
			mounts, err := w.Prepare(t.Context(), p)
			if fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
				t.Fatalf("got error  %v\nwant error %v", err, c.err)
			}
			if err == nil && mounts["v"].HostPath != "" {
				if got := tree(t, mounts["v"].HostPath); got != c.want {
					t.Errorf("got\n%s\nwant\n%s", got, c.want)
				}
				if !mounts["v"].ReadOnly {
					t.Error("containers may write to it")
				}
			}
			w.removed(p.UID)
		})
	}
}

// removed removes a pod's volumes and looks for what is left of them.
func (w *world) removed(uid types.UID) {
	w.t.Helper()
	if err := w.Remove(w.t.Context(), uid); err != nil {
		w.t.Fatal(err)
	}
	left, err := mountsBelow(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	left = slices.DeleteFunc(left, func(p string) bool { return p == w.secretsDir() })
	if len(left) > 0 {
		w.t.Errorf("mounts are left: %v", left)
	}
	for _, dir := range []string{w.volumesDir(uid), filepath.Join(w.secretsDir(), string(uid)), filepath.Join(w.podDir(uid), "subpaths")} {
		if _, err := os.Lstat(dir); err == nil {
			w.t.Errorf("%s is left", dir)
		}
	}
}

func TestUnusedVolumeIsNotPrepared(t *testing.T) {
	w := newWorld(t)
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "nope"}}})
	p.Spec.Containers[0].VolumeMounts = nil
	if mounts := w.prepare(p); len(mounts) != 0 {
		t.Errorf("prepared %v", mounts)
	}
}

// An update of a config map, of a secret and of the pod's labels reach the
// files; a reader who holds the old directory keeps the old files.
func TestUpdates(t *testing.T) {
	w := newWorld(t, settings.DeepCopy(), password.DeepCopy())
	p := podWith(
		corev1.Volume{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("settings")}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password"}}},
		corev1.Volume{Name: "late", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "late", Optional: ptr(true)}}},
		corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
	)
	dirs := w.prepare(p)

	ctx := t.Context()
	before, err := os.Readlink(filepath.Join(dirs["c"], dataLink))
	if err != nil {
		t.Fatal(err)
	}
	changed := settings.DeepCopy()
	changed.ResourceVersion, changed.Data = "2", map[string]string{"color": "blue", "shape": "round"}
	changed.BinaryData = nil
	if _, err := w.api.CoreV1().ConfigMaps("ns").Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.becomes(dirs["c"], "-rw-r--r-- 0:0 color \"blue\"\n-rw-r--r-- 0:0 shape \"round\"")
	if after, _ := os.Readlink(filepath.Join(dirs["c"], dataLink)); after == before {
		t.Error("the directory of the data was changed in place")
	}
	if _, err := os.Stat(filepath.Join(dirs["c"], before)); err == nil {
		t.Error("the old data is left")
	}

	other := password.DeepCopy()
	other.ResourceVersion, other.Data["key"] = "3", []byte("n3w")
	if _, err := w.api.CoreV1().Secrets("ns").Update(ctx, other, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.becomes(dirs["s"], "-rw-r--r-- 0:0 key \"n3w\"")

	late := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "late", ResourceVersion: "4"}, Data: map[string][]byte{"k": []byte("v")}}
	if _, err := w.api.CoreV1().Secrets("ns").Create(ctx, late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.becomes(dirs["late"], "-rw-r--r-- 0:0 k \"v\"")

	relabeled := p.DeepCopy()
	relabeled.Labels["app"] = "db"
	w.Observe(relabeled)
	w.becomes(dirs["d"], "-rw-r--r-- 0:0 labels \"app=\\\"db\\\"\"")

	w.removed(p.UID)
	if w.Objects == nil || w.api.Watches.Load() != 0 {
		w.eventually("watches end", func() bool { return w.api.Watches.Load() == 0 })
	}
}

// While its namespace is deleted, what a pod refers to is refused for a moment.
func TestForbiddenUpdate(t *testing.T) {
	p := podWith(corev1.Volume{Name: "s"})
	for err, warns := range map[error]bool{
		apierrors.NewForbidden(corev1.Resource("secrets"), "password", errors.New("no pod refers to it")): false,
		errors.New("disk full"): true,
	} {
		var log bytes.Buffer
		m := New(Config{Dir: t.TempDir(), Client: objectstest.New(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		m.updateFailed(p, &p.Spec.Volumes[0], fmt.Errorf("fetch: %w", err))
		if (log.Len() > 0) != warns {
			t.Errorf("%v: logged is %q", err, log.String())
		}
	}
}

// becomes waits for a directory to have the content.
func (w *world) becomes(dir, want string) {
	w.t.Helper()
	got := ""
	w.eventually("files change", func() bool { got = tree(w.t, dir); return got == want })
	if got != want {
		w.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// eventually looks until it is so. What it waits for happens in the kernel's
// file tables, which tell nobody.
func (w *world) eventually(what string, so func() bool) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	for !so() {
		select {
		case <-deadline:
			w.t.Errorf("%s: not within 10 seconds", what)
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A volume mounted inside a read-only one needs a directory there, which an
// update must not remove: the mount would go with it.
func TestNestedMountPoints(t *testing.T) {
	p := podWith(
		corev1.Volume{Name: "outer", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("settings")}}},
		corev1.Volume{Name: "inner", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "outer", MountPath: "/etc/app/"}, {Name: "inner", MountPath: "/etc/app/cache/deep/er"}, {Name: "inner", MountPath: "/etc/app/cache/deep"}, {Name: "inner", MountPath: "/etc/application"},
	}
	if got := nestedMountPoints(p, "outer"); !slices.Equal(got, []string{"cache/deep"}) {
		t.Fatal(got)
	}
	w := newWorld(t, settings.DeepCopy())
	dirs := w.prepare(p)
	changed := settings.DeepCopy()
	changed.ResourceVersion, changed.Data, changed.BinaryData = "2", map[string]string{"x": "1"}, nil
	if _, err := w.api.CoreV1().ConfigMaps("ns").Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.becomes(dirs["outer"], "drwxr-xr-x 0:0 cache\ndrwxr-xr-x 0:0 cache/deep\n-rw-r--r-- 0:0 x \"1\"")
}

// After kill -9 the next agent takes volumes over as they are, or removes them.
func TestTakenOverAfterKill(t *testing.T) {
	w := newWorld(t, settings.DeepCopy(), password.DeepCopy())
	host := t.TempDir()
	p := podWith(
		corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password"}}},
		corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
	)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))}
	dirs := w.prepare(p)
	data := os.Mkdir(filepath.Join(dirs["disk"], "pgdata"), 0o700)
	if data != nil || os.Chmod(dirs["disk"], 0o700) != nil || os.WriteFile(filepath.Join(dirs["memory"], "f"), []byte("x"), 0o600) != nil || os.WriteFile(filepath.Join(host, "precious"), nil, 0o600) != nil {
		t.Fatal("cannot play the container")
	}
	mounts, _ := w.Prepare(t.Context(), p)
	if _, err := w.Subpath(t.Context(), p, "main", 3, mounts["host"], "."); err != nil {
		t.Fatal(err)
	}
	link, _ := os.Readlink(filepath.Join(dirs["s"], dataLink))

	w.restart()
	w.prepare(p)
	for path, want := range map[string]fs.FileMode{
		dirs["disk"]:                          fs.ModeDir | 0o700,
		filepath.Join(dirs["disk"], "pgdata"): fs.ModeDir | fs.ModeSetgid | 0o700,
		filepath.Join(dirs["memory"], "f"):    0o600,
		dirs["memory"]:                        fs.ModeDir | fs.ModeSticky | fs.ModeSetgid | 0o777,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if again, _ := os.Readlink(filepath.Join(dirs["s"], dataLink)); again != link {
		t.Error("unchanged secret was written anew")
	}

	w.restart() // and the pod was deleted meanwhile
	w.removed(p.UID)
	if _, err := os.Stat(filepath.Join(host, "precious")); err != nil {
		t.Error("removing the pod took the host's file: ", err)
	}
	w.removed(p.UID) // nothing left to do is no error
}
