package runtime

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// standIn is a process that looks like the shim of a sandbox.
func standIn(t *testing.T, sandbox, socket string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh")
	cmd.Args = []string{"/d/containerd-shim-runc-v2", "-c", "sleep 1000 & wait", "-namespace", "k8s.io", "-id", sandbox, "-address", socket}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // unless it was ended
	return cmd
}

// TestSweep: the shim of a sandbox that nobody knows is ended, with what runs in
// it; those of pods and of other nodes are not.
func TestSweep(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	r := startRuntime(t, Config{DataDir: dir, Logger: testLogger(os.Stderr)})
	if !r.ImageStore().has(t.Context(), []string{"orch.local/hello"}) { // waits for the import
		t.Fatal("no hello image")
	}
	p := startPod(t, r.Runtime())
	defer p.remove(t, r.Runtime())
	stray, other := standIn(t, "stray", r.layout.socket), standIn(t, "other", "/elsewhere/containerd.sock")
	left := filepath.Join(r.layout.state, "io.containerd.runtime.v2.task", "k8s.io", "half-made")
	if err := os.MkdirAll(filepath.Join(left, "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	asked := false
	ended, err := r.Sweep(t.Context(), func(context.Context) error { asked = true; return nil })
	if err != nil || ended != 1 || !asked {
		t.Fatalf("%d ended, asked %v, %v", ended, asked, err)
	}
	if err := stray.Wait(); err == nil {
		t.Error("the stray shim ended by itself")
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another node's shim: %v", err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a half-made sandbox left is still there: %v", err)
	}
	boxes, err := r.Runtime().ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(boxes.Items) != 1 || boxes.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("sandboxes: %v, %v", boxes, err)
	}
	if ended, err := r.Sweep(t.Context(), func(context.Context) error { return nil }); err != nil || ended != 0 {
		t.Errorf("second time: %d ended, %v", ended, err)
	}
}
