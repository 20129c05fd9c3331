package pod

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/runtime"
	"orch/runtime/embedded"
)

// insideEnv marks the child process in which real containers run, and names the
// directory it works in. The child has its own processes, mounts and network,
// all of which end with it.
const insideEnv = "ORCH_TEST_POD_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "set up namespaces:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// settle makes the fresh namespaces usable.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	return exec.Command("ip", "link", "set", "lo", "up").Run()
}

// TestReal runs the tests named TestReal… again in namespaces of their own,
// with the embedded containerd.
func TestReal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := embedded.Load(); errors.Is(err, embedded.ErrNotBuilt) {
		t.Skip(err)
	}
	if os.Getenv(insideEnv) != "" {
		t.Skip("this is the outside")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestInside", "-test.v="+fmt.Sprint(testing.Verbose()))
	dir, err := os.MkdirTemp("/tmp", "pod") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // pods with users of their own pass it
		t.Fatal(err)
	}
	t.Cleanup(func() { // the child may have been killed
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/orch-test-" + filepath.Base(dir) + "*")
		unified, _ := filepath.Glob("/sys/fs/cgroup/orch-test-" + filepath.Base(dir) + "*")
		for _, group := range append(groups, unified...) {
			if err := removeTree(group); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// cniPlugin gives each pod a veth pair and a route: enough to reach it.
const cniPlugin = `#!/bin/sh
set -e
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0; }
dev=v$(echo "$CNI_CONTAINERID" | cut -c1-10)
[ "$CNI_COMMAND" = DEL ] && { ip link del "$dev" 2>/dev/null || true; exit 0; }
[ "$CNI_COMMAND" = ADD ] || exit 0
mkdir -p "$0.ips"; n=2
until mkdir "$0.ips/$n" 2>/dev/null; do n=$((n+1)); done
ip link add "$dev" type veth peer name eth0 netns "$(basename "$CNI_NETNS")" 2>/dev/null || {
  ip link add "$dev" type veth peer name "p$dev"
  mkdir -p /var/run/netns
  ip link set "p$dev" netns "$CNI_NETNS"
  nsenter --net="$CNI_NETNS" ip link set "p$dev" name eth0
}
ip addr add 10.99.255.254/32 dev "$dev"; ip link set "$dev" up
ip route add "10.99.0.$n/32" dev "$dev"
nsenter --net="$CNI_NETNS" sh -c "ip link set lo up; ip addr add 10.99.0.$n/32 dev eth0; ip link set eth0 up; ip route add 10.99.255.254/32 dev eth0; ip route add default via 10.99.255.254 dev eth0"
echo "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"$CNI_NETNS\"}],\"ips\":[{\"address\":\"10.99.0.$n/32\",\"interface\":0}]}"
`

// realWorld is a world whose containers are real.
func realWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("runs within TestReal")
	}
	dir, err := os.MkdirTemp(os.Getenv(insideEnv), "")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	bin, conf := filepath.Join(dir, "cni-bin"), filepath.Join(dir, "cni-conf")
	for path, content := range map[string]string{
		filepath.Join(bin, "test-veth"):      cniPlugin,
		filepath.Join(conf, "10-t.conflist"): `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"test-veth"}]}`,
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := runtime.New(runtime.Config{DataDir: dir, CNIBinDir: bin, CNIConfDir: conf, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	select {
	case <-r.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	if _, err := r.ImageStore().Import(t.Context(), bytes.NewReader(busyboxArchive(t))); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, r.Runtime(), r.Images(), filepath.Join(dir, "agent"))
	w.cfg.CgroupParent = "/orch-test-" + filepath.Base(os.Getenv(insideEnv)) + "-" + filepath.Base(dir)
	w.run()
	t.Cleanup(func() {
		w.stop()
		w.clear()
	})
	return w
}

// clear takes down what a test has left running.
func (w *world) clear() {
	list, err := w.cfg.Runtime.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		w.t.Error(err)
	}
	for _, b := range list.GetItems() {
		_, stop := w.cfg.Runtime.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.GetId()})
		_, remove := w.cfg.Runtime.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.GetId()})
		if err := errors.Join(stop, remove); err != nil {
			w.t.Error(err)
		}
	}
}

// busyboxArchive is an image of the machine's busybox-static.
func busyboxArchive(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("busybox-static is missing")
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "dev/", "proc/", "sys/", "www/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o777}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, applet := range strings.Fields("sh sleep true false cat echo httpd touch test ls id env wget hostname kill trap") {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("hello\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive(t, layer.Bytes())
}

func archive(t *testing.T, layer []byte) []byte {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		image, err = mutate.ConfigFile(image, &v1.ConfigFile{
			OS: "linux", Architecture: "amd64", Config: v1.Config{Env: []string{"PATH=/bin"}},
			RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(t, image)},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(testImage)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tarball.Write(tag, image, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func diffIDs(t *testing.T, image v1.Image) []v1.Hash {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS.DiffIDs
}

// shell makes a pod that runs a script.
func shell(name, script string) *corev1.Pod { return newPod(name, "sh", "-c", script) }

// said gives what a container has written to its log so far.
func (w *world) said(pod, container string, attempt int) string {
	path := filepath.Join(w.m.LogDir("default", pod, types.UID(pod+"-uid")), container, fmt.Sprintf("%d.log", attempt))
	return logTail(path, 1<<20, 1000)
}

// awaitLog waits for a line of a container's log.
func (w *world) awaitLog(pod, container, line string) {
	w.t.Helper()
	for begin := time.Now(); !strings.Contains(w.said(pod, container, 0), line); {
		if time.Since(begin) > 10*time.Second {
			w.t.Fatalf("%s never says %q, but %q", pod, line, w.said(pod, container, 0))
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestInsideLifecycle(t *testing.T) {
	w := realWorld(t)
	begin := time.Now()
	p := shell("one", "trap 'exit 0' TERM; echo up; while true; do sleep 0.05; done")
	p.Spec.Hostname, p.Spec.Subdomain = "host", "sub"
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"alias"}}}
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("200m"), corev1.ResourceMemory: resource.MustParse("64Mi")}}
	p.Spec.Containers[0].Resources.Requests = p.Spec.Containers[0].Resources.Limits
	w.create(p)
	got := w.await("one", "ready", isReady)
	t.Logf("ready after %v", time.Since(begin))
	if got.Status.PodIP == "" || got.Status.StartTime == nil || got.Status.QOSClass != corev1.PodQOSGuaranteed {
		t.Errorf("status: %+v", got.Status)
	}
	if n := w.patches(); n > 3 {
		t.Errorf("%d status writes for one start", n)
	}
	w.awaitLog("one", "main", "up")
	w.m.mu.Lock()
	group := w.m.cgroups.parent(got)
	w.m.mu.Unlock()
	for file, want := range map[string]string{"memory/%s/memory.limit_in_bytes": "67108864", "cpu/%s/cpu.cfs_quota_us": "20000", "cpu/%s/cpu.shares": "204"} {
		path := filepath.Join("/sys/fs/cgroup", fmt.Sprintf(file, group))
		if raw, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(raw)) != want {
			t.Errorf("%s is %s, want %s", path, raw, want)
		}
	}
	c, ok := w.m.ContainerID("default", "one", "", "main")
	if !ok {
		t.Fatal("no container")
	}
	for command, want := range map[string]string{
		"cat /etc/hosts":       got.Status.PodIP + "\thost.sub.default.svc.cluster.local\thost\n\n# Entries added by HostAliases.\n192.0.2.9\talias\n",
		"hostname":             "host\n",
		"cat /etc/resolv.conf": "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n",
	} {
		_, out, err := w.m.Exec(t.Context(), c.ID, strings.Fields(command), 5*time.Second)
		if err != nil || !strings.HasSuffix(string(out), want) {
			t.Errorf("%s gives %q, %v; want %q", command, out, err, want)
		}
	}
	begin = time.Now()
	w.remove("one", 30)
	w.awaitGone("one")
	t.Logf("gone after %v", time.Since(begin))
	if rest := w.m.leftovers(); len(rest) > 0 {
		t.Errorf("files are left of %v", rest)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/memory", group)); err == nil {
		t.Error("the pod's cgroup is left")
	}
}

func TestInsideEndings(t *testing.T) {
	w := realWorld(t)
	say := shell("say", "echo last words > /dev/termination-log; exit 3")
	logs := shell("logs", "echo in the log; exit 4")
	oom := shell("oom", "x=a; while true; do x=$x$x; done")
	nothing := newPod("nothing", "/no/such/program")
	once := shell("once", "exit 0")
	for _, p := range []*corev1.Pod{say, logs, oom, once} {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
	}
	logs.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	oom.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Mi")}
	w.create(say, logs, oom, once, nothing)
	for name, want := range map[string]string{
		"say":  "say Failed main:terminated(3 Error \"last words\\n\")×0",
		"logs": "logs Failed main:terminated(4 Error \"in the log\\n\")×0",
		"oom":  "oom Failed main:terminated(137 OOMKilled \"\")×0",
		"once": "once Succeeded main:terminated(0 Completed \"\")×0",
	} {
		p := w.await(name, "at its end", func(p *corev1.Pod) bool { return terminal(p.Status.Phase) })
		if got := sketch(p); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
	p := w.await("nothing", "failing", waitsFor("main", "RunContainerError"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "no such file or directory") {
		t.Error(m)
	}
	w.await("nothing", "backing off", waitsFor("main", "CrashLoopBackOff"))
}

func TestInsideAdoption(t *testing.T) {
	w := realWorld(t)
	w.create(shell("stays", "echo $$; sleep 3600"), shell("goes", "sleep 3600"), shell("ends", "sleep 2; exit 7"))
	for _, name := range []string{"stays", "goes", "ends"} {
		w.await(name, "ready", isReady)
	}
	before, _ := w.m.ContainerID("default", "stays", "", "main")
	w.stop()
	if err := w.client.CoreV1().Pods("default").Delete(t.Context(), "goes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	<-time.After(2 * time.Second) // "ends" ends while nobody looks
	w.run()
	w.await("ends", "restarted", func(p *corev1.Pod) bool {
		cs := p.Status.ContainerStatuses[0]
		return cs.RestartCount == 1 && cs.LastTerminationState.Terminated != nil && cs.LastTerminationState.Terminated.ExitCode == 7
	})
	after, ok := w.m.ContainerID("default", "stays", "", "main")
	if !ok || after.ID != before.ID || after.State != before.State || w.get("stays").Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	for w.m.ByUID("goes-uid") != nil || len(w.m.leftovers()) > 2 {
		<-time.After(10 * time.Millisecond)
	}
	list, err := w.cfg.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 2 {
		t.Errorf("sandboxes: %v, %v", list.GetItems(), err)
	}
}

func TestInsideProbes(t *testing.T) {
	w := realWorld(t)
	p := shell("web", "sleep 0.3; httpd -f -p 80 -h /www")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 10, ProbeHandler: corev1.ProbeHandler{
		HTTPGet: &corev1.HTTPGetAction{Path: "/index.html", Port: intstr.FromString("web")}}}
	p.Spec.Containers[0].LivenessProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{
		Exec: &corev1.ExecAction{Command: []string{"test", "!", "-e", "/tmp/sick"}}}}
	q := shell("tcp", "httpd -f -p 81")
	q.Spec.Containers[0].StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(81)}}}
	begin := time.Now()
	w.create(p, q)
	w.await("web", "ready", isReady)
	w.await("tcp", "ready", isReady)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("a server that opens its port late was ready after %v only", d)
	}
	c, _ := w.m.ContainerID("default", "web", "", "main")
	if _, _, err := w.m.Exec(t.Context(), c.ID, []string{"touch", "/tmp/sick"}, time.Second); err != nil {
		t.Fatal(err)
	}
	w.await("web", "restarted", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p) })
	for _, want := range []string{"Unhealthy: Liveness probe failed", "Killing: Container main failed liveness probe, will be restarted"} {
		if !w.events.has(want) {
			t.Errorf("no event %q", want)
		}
	}
}

func TestInsideSandboxDies(t *testing.T) {
	w := realWorld(t)
	w.create(shell("a", "sleep 3600"))
	first := w.await("a", "ready", isReady).Status.PodIP
	id, _ := w.m.Sandbox("default", "a", "")
	got, err := w.cfg.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(got.GetInfo()["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("no pid in %q: %v", got.GetInfo()["info"], err)
	}
	if err := unix.Kill(info.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.await("a", "moved", func(p *corev1.Pod) bool {
		return isReady(p) && p.Status.PodIP != first && p.Status.ContainerStatuses[0].RestartCount == 1
	})
}

func TestInsideBurst(t *testing.T) {
	w := realWorld(t)
	var alone []time.Duration
	for i := range 10 {
		name := fmt.Sprint("alone", i)
		begin := time.Now()
		w.create(shell(name, "sleep 3600"))
		w.await(name, "ready", isReady)
		alone = append(alone, time.Since(begin))
	}
	slices.Sort(alone)
	t.Logf("create to ready, one at a time: p50 %v, max %v", alone[5], alone[9])
	begin := time.Now()
	for i := range 20 {
		w.create(shell(fmt.Sprint("burst", i), "sleep 3600"))
	}
	for i := range 20 {
		w.await(fmt.Sprint("burst", i), "ready", isReady)
	}
	t.Logf("20 at once: %v", time.Since(begin))
}

// patches counts the status writes so far.
func (w *world) patches() (n int) {
	for _, a := range w.client.Actions() {
		if a.GetVerb() == "patch" {
			n++
		}
	}
	return n
}
