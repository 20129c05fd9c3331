package volume

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/agent/pod"
)

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		err  string // after "hostPath type check failed: DIR/path "
	}{
		{"nothing", "", ""},
		{"new/dir", corev1.HostPathDirectoryOrCreate, ""},
		{".", corev1.HostPathDirectoryOrCreate, ""},
		{"file", corev1.HostPathDirectoryOrCreate, "is not a directory"},
		{"nothing", corev1.HostPathDirectory, "is not a directory"},
		{"file/x", corev1.HostPathDirectory, "is not a directory"},
		{"new/file", corev1.HostPathFileOrCreate, ""},
		{"new", corev1.HostPathFileOrCreate, "is not a file"},
		{"file", corev1.HostPathFile, ""},
		{"nothing", corev1.HostPathFile, "is not a file"},
		{"socket", corev1.HostPathSocket, ""},
		{"file", corev1.HostPathSocket, "is not a socket file"},
		{"/dev/null", corev1.HostPathCharDev, ""},
		{"/dev/null", corev1.HostPathBlockDev, "is not a block device"},
		{"file", corev1.HostPathCharDev, "is not a character device"},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		err := checkHostPath(&corev1.HostPathVolumeSource{Path: path, Type: &c.kind})
		want := "<nil>"
		if c.err != "" {
			want = "hostPath type check failed: " + path + " " + c.err
		}
		if fmt.Sprint(err) != want {
			t.Errorf("%s as %q: %v, want %s", c.path, c.kind, err, want)
		}
	}
	if err := checkHostPath(&corev1.HostPathVolumeSource{Path: "/tmp/../etc"}); err == nil {
		t.Error("backsteps are taken")
	}
}

func TestTmpfsOptions(t *testing.T) {
	limits := func(amount string) corev1.Container {
		return corev1.Container{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(amount)}}}
	}
	for name, c := range map[string]struct {
		containers []corev1.Container
		size       string
		group      *int64
		want       string
	}{
		"unlimited: the node":        {[]corev1.Container{{}}, "", nil, "mode=1777,size=1073741824"},
		"own limit":                  {[]corev1.Container{{}}, "1Mi", nil, "mode=1777,size=1048576"},
		"limits of all containers":   {[]corev1.Container{limits("1Mi"), limits("2Mi")}, "", nil, "mode=1777,size=3145728"},
		"smallest counts":            {[]corev1.Container{limits("1Mi")}, "2Mi", nil, "mode=1777,size=1048576"},
		"one container has no limit": {[]corev1.Container{limits("1Mi"), {}}, "2Mi", nil, "mode=1777,size=2097152"},
		"more than the node has":     {[]corev1.Container{limits("2Gi")}, "3Gi", nil, "mode=1777,size=1073741824"},
		"group":                      {[]corev1.Container{{}}, "1Mi", ptr(int64(7)), "mode=3777,gid=7,size=1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{Spec: corev1.PodSpec{Containers: c.containers, SecurityContext: &corev1.PodSecurityContext{FSGroup: c.group}}}
			source := &corev1.EmptyDirVolumeSource{}
			if c.size != "" {
				source.SizeLimit = ptr(resource.MustParse(c.size))
			}
			if got := tmpfsOptions(p, source, machine()); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestMemoryVolumeIsBounded(t *testing.T) {
	w := newWorld(t)
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("64Ki"))}}})
	dir := w.prepare(p)["v"]
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 128<<10), 0o600); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("write beyond the limit: %v", err)
	}
	w.removed(p.UID)
}

func TestBytesIn(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := bytesIn(t.Context(), dir)
	write("a", 64<<10)
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if got := bytesIn(t.Context(), dir) - empty; got != 64<<10 {
		t.Errorf("a file with two names counts as %d", got)
	}
}

func claimed(name string, source corev1.PersistentVolumeSource, change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) []runtime.Object {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "claim"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "volume"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "volume"}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{UID: "claim"}}}
	if change != nil {
		change(claim, volume)
	}
	return []runtime.Object{claim, volume}
}

func TestClaims(t *testing.T) {
	dir := t.TempDir()
	local := corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}}
	type objects = func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
	for name, c := range map[string]struct {
		source corev1.PersistentVolumeSource
		change objects
		err    string // after "MountVolume.SetUp failed for volume "v" : "
	}{
		"local":     {source: local},
		"host path": {source: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}},
		"unbound": {local, func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.Status.Phase = corev1.ClaimPending
		}, "error processing PVC ns/data: PVC is not bound"},
		"absent": {local, func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Name = "other" },
			`error processing PVC ns/data: failed to fetch PVC from API server: persistentvolumeclaims "data" not found`},
		"another's": {local, func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "x" }, "error processing PVC ns/data: PV volume is not bound to this claim"},
		"block": {local, func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock)
		},
			"volume v has volumeMode Block, which this node does not serve"},
		"unknown": {source: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{}}, err: "persistent volume volume is of a kind that this node does not serve: use hostPath or local"},
		"gone":    {source: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/nonexistent"}}, err: `path "/nonexistent" does not exist`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, claimed("data", c.source, c.change)...)
			p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: true}}})
			mounts, err := w.Prepare(t.Context(), p)
			if c.err != "" {
				if want := `MountVolume.SetUp failed for volume "v" : ` + c.err; fmt.Sprint(err) != want {
					t.Errorf("got  %v\nwant %s", err, want)
				}
				return
			}
			if want := (pod.Mount{HostPath: dir, ReadOnly: true}); err != nil || mounts["v"] != want {
				t.Errorf("got %v, %v", mounts, err)
			}
		})
	}
}

func TestGroupOfLocalVolume(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for path, err := range map[string]error{
		"outside": os.WriteFile(outside, nil, 0o600),
		"sub":     os.Mkdir(filepath.Join(dir, "sub"), 0o700),
		"file":    os.WriteFile(filepath.Join(dir, "sub", "file"), nil, 0o604),
		"link":    os.Symlink(outside, filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(path, err)
		}
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{FSGroup: ptr(int64(2000)), FSGroupChangePolicy: ptr(corev1.FSGroupChangeOnRootMismatch)}}}
	owned := func(path string, group uint32, mode fs.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != mode || info.Sys().(*syscall.Stat_t).Gid != group {
			t.Errorf("%s: %v %d, %v", path, info.Mode(), info.Sys().(*syscall.Stat_t).Gid, err)
		}
	}
	if err := localDirectory(p, dir); err != nil {
		t.Fatal(err)
	}
	owned(dir, 2000, fs.ModeDir|fs.ModeSetgid|0o775)
	owned(filepath.Join(dir, "sub"), 2000, fs.ModeDir|fs.ModeSetgid|0o770)
	owned(filepath.Join(dir, "sub", "file"), 2000, 0o664)
	owned(outside, 0, 0o600)

	// The root matches: nothing below is looked at.
	if err := os.Chmod(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := localDirectory(p, dir); err != nil {
		t.Fatal(err)
	}
	owned(filepath.Join(dir, "sub"), 2000, fs.ModeDir|0o700)
	p.Spec.SecurityContext.FSGroupChangePolicy = ptr(corev1.FSGroupChangeAlways)
	if err := localDirectory(p, dir); err != nil {
		t.Fatal(err)
	}
	owned(filepath.Join(dir, "sub"), 2000, fs.ModeDir|fs.ModeSetgid|0o770)
}

func TestSubpath(t *testing.T) {
	w := newWorld(t)
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	dir := w.prepare(p)["v"]
	volume := pod.Mount{HostPath: dir}
	outside := t.TempDir()
	for path, err := range map[string]error{
		"secret":   os.WriteFile(filepath.Join(outside, "secret"), []byte("host's"), 0o600),
		"file":     os.WriteFile(filepath.Join(dir, "file"), []byte("mine"), 0o600),
		"dir":      os.Mkdir(filepath.Join(dir, "dir"), 0o700),
		"inner":    os.Symlink("dir", filepath.Join(dir, "inner")),
		"absolute": os.Symlink(outside, filepath.Join(dir, "absolute")),
		"upwards":  os.Symlink("../../..", filepath.Join(dir, "upwards")),
		"secret2":  os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "steal")),
	} {
		if err != nil {
			t.Fatal(path, err)
		}
	}
	for _, evil := range []string{"../x", "/etc", "absolute", "absolute/secret", "absolute/new", "upwards", "upwards/etc", "steal", "dir/../../x"} {
		if path, err := w.Subpath(t.Context(), p, "main", 0, volume, evil); err == nil {
			t.Errorf("%q leads to %s", evil, path)
		}
	}
	if _, err := os.Lstat(filepath.Join(outside, "new")); err == nil {
		t.Error("a directory was made outside")
	}

	same := func(a, b string) {
		t.Helper()
		x, err1 := os.Stat(a)
		y, err2 := os.Stat(b)
		if err1 != nil || err2 != nil || !os.SameFile(x, y) {
			t.Errorf("%s is not %s: %v, %v", a, b, err1, err2)
		}
	}
	for sub, target := range map[string]string{"file": "file", "dir": "dir", "inner": "dir", ".": ".", "made/deep": "made/deep", "inner/made": "dir/made"} {
		// The same mount again and again, as containers that restart do.
		path, err := w.Subpath(t.Context(), p, "main", 1, volume, sub)
		if err != nil {
			t.Errorf("%s: %v", sub, err)
			continue
		}
		same(path, filepath.Join(dir, target))
	}
	if info, err := os.Stat(filepath.Join(dir, "made")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("made directory: %v, %v", info.Mode(), err)
	}
	points, err := mountsBelow(filepath.Join(w.podDir(p.UID), "subpaths"))
	if err != nil || len(points) != 1 {
		t.Errorf("restarts heap up mounts: %v, %v", points, err)
	}
	w.removed(p.UID)
}

// A bind mount shares events with what it was made from: taking it away must
// not take away the host's own mounts below that place.
func TestRemovalSparesMountsOfTheHost(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	below := filepath.Join(host, "below")
	if err := unix.Mount(host, host, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host, unix.MNT_DETACH)
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}})
	w.prepare(p)
	if _, err := w.Subpath(t.Context(), p, "main", 0, pod.Mount{HostPath: host}, "."); err != nil {
		t.Fatal(err)
	}
	w.removed(p.UID)
	if !isTmpfs(below) {
		t.Error("the host's mount is gone")
	}
}

func TestPointsBelow(t *testing.T) {
	table := `22 1 0:21 / / rw - ext4 /dev/a rw
30 22 0:30 / /data/pods/a/volumes/x rw shared:1 - tmpfs tmpfs rw
31 30 0:31 / /data/pods/a/volumes/x/y\040z rw - tmpfs tmpfs rw
32 22 0:32 / /data/pods/ab rw - tmpfs tmpfs rw
33 22 0:33 / /data/pods/a rw - tmpfs tmpfs rw
broken
`
	got := strings.Join(pointsBelow([]byte(table), "/data/pods/a"), "|")
	if want := "/data/pods/a/volumes/x/y z|/data/pods/a/volumes/x|/data/pods/a"; got != want {
		t.Errorf("got %s", got)
	}
}
