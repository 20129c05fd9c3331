package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/runtime/embedded"
)

// childEnv makes the test binary run a runtime on the directory it names, so
// that a test can kill it.
const childEnv = "ORCH_TEST_RUNTIME_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		r, err := New(Config{DataDir: dir, Logger: testLogger(os.Stderr)})
		if err == nil {
			err = r.Run(context.Background())
		}
		slog.Error("runtime ended", "err", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func testLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// needReal skips where containers cannot run.
func needReal(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := embedded.Load(); errors.Is(err, embedded.ErrNotBuilt) {
		t.Skip(err)
	}
}

// child is a runtime in another process.
type child struct {
	cmd *exec.Cmd
	cri runtimeapi.RuntimeServiceClient
	img *ImageStore
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	t.Cleanup(c.kill)
	conn, err := dial(newLayout(dir).socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c.cri = runtimeapi.NewRuntimeServiceClient(conn)
	c.img = &ImageStore{conn: conn, cri: runtimeapi.NewImageServiceClient(conn)}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// Recorded means unpacked: killed before that, temporary mounts would stay.
	for readLedger(newLayout(dir).ledger)["embedded:hello.tar"].Hash == "" || !c.img.has(ctx, []string{"orch.local/hello:latest"}) {
		select {
		case <-ctx.Done():
			t.Fatal("runtime does not get ready")
		case <-time.After(10 * time.Millisecond):
		}
	}
	return c
}

func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
}

// startRuntime runs a runtime in this process until the test ends.
func startRuntime(t *testing.T, cfg Config) *Runtime {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-r.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("Run: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("runtime does not get ready")
	}
	return r
}

// pod is a host-network sandbox with one container of the hello image.
type pod struct {
	sandbox, container string
	config             *runtimeapi.PodSandboxConfig
	logs               string
}

func startPod(t *testing.T, cri runtimeapi.RuntimeServiceClient, env ...string) *pod {
	t.Helper()
	ctx := t.Context()
	logs := t.TempDir()
	host := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	p := &pod{logs: filepath.Join(logs, "hello/0.log")}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: t.Name(), Namespace: "default", Uid: filepath.Base(logs)},
		LogDirectory: logs,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: host}},
	}
	sandbox, err := cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal("run sandbox: ", err)
	}
	p.sandbox = sandbox.PodSandboxId
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "hello"},
		Image:    &runtimeapi.ImageSpec{Image: "orch.local/hello:latest"},
		LogPath:  "hello/0.log",
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: host}},
	}
	for _, e := range append([]string{"PORT=0"}, env...) {
		k, v, _ := strings.Cut(e, "=")
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(v)})
	}
	if err := os.MkdirAll(filepath.Dir(p.logs), 0o755); err != nil {
		t.Fatal(err)
	}
	container, err := cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Fatal("create container: ", err)
	}
	p.container = container.ContainerId
	if _, err := cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		t.Fatal("start container: ", err)
	}
	return p
}

func (p *pod) remove(t *testing.T, cri runtimeapi.RuntimeServiceClient) {
	t.Helper()
	ctx := context.Background()
	if _, err := cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: 2}); err != nil {
		t.Error("stop container: ", err)
	}
	if _, err := cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Error("stop sandbox: ", err)
	}
	if _, err := cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Error("remove sandbox: ", err)
	}
}

// pid of the container's first process.
func (p *pod) pid(t *testing.T, cri runtimeapi.RuntimeServiceClient) string {
	t.Helper()
	s, err := cri.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: p.container, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("container is %s, reason %q", s.Status.State, s.Status.Reason)
	}
	_, rest, ok := strings.Cut(s.Info["info"], `"pid":`)
	if !ok {
		t.Fatalf("no pid in %s", s.Info["info"])
	}
	return rest[:strings.IndexAny(rest, ",}")]
}

// noLeftovers checks that nothing of dir is mounted or runs any more.
func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			t.Errorf("left mounted: %s", line)
			unix.Unmount(strings.Fields(line)[1], unix.MNT_DETACH)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if cmdline, err := os.ReadFile(p); err == nil && strings.Contains(string(cmdline), dir+"/agent") {
			t.Errorf("left running: %s %q", p, cmdline)
		}
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "rt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		noLeftovers(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestContainerLifecycle(t *testing.T) {
	needReal(t)
	start := time.Now()
	r := startRuntime(t, Config{DataDir: shortDir(t), Logger: testLogger(os.Stderr)})
	t.Logf("ready after %s", time.Since(start))
	if !r.ImageStore().has(t.Context(), []string{"orch.local/hello"}) { // waits for the import
		t.Fatal("no hello image")
	}
	start = time.Now()
	p := startPod(t, r.Runtime())
	t.Logf("pod started after %s", time.Since(start))
	defer p.remove(t, r.Runtime())
	p.pid(t, r.Runtime())

	_, err := r.Runtime().ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/absent"}})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("exec of an absent program: %v", err)
	}
	waitLog(t, p.logs, "listening on port 0")

	answer, err := r.Images().PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "orch.local/hello"}})
	if err != nil || !strings.HasPrefix(answer.ImageRef, "sha256:") {
		t.Errorf("pull of the embedded image: %v, %v", answer, err)
	}
}

// waitLog waits for text in a container's log, by inotify on nothing: the file is short and local.
func waitLog(t *testing.T, path, text string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		data, _ := os.ReadFile(path)
		if strings.Contains(string(data), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s holds %q, want %q", path, data, text)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestContainersSurviveKill(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	first := startChild(t, dir)
	p := startPod(t, first.cri)
	pid := p.pid(t, first.cri)
	first.kill()

	second := startChild(t, dir)
	defer p.remove(t, second.cri)
	if again := p.pid(t, second.cri); again != pid {
		t.Errorf("pid %s before the kill, %s after", pid, again)
	}
	// The adopted container is still ours to watch: its end is noticed.
	if _, err := second.cri.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: 5}); err != nil {
		t.Fatal(err)
	}
	s, err := second.cri.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
	if err != nil || s.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Status.ExitCode != 0 {
		t.Errorf("after stop: %v, %v", s.GetStatus(), err)
	}
}
