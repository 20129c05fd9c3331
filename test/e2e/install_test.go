package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// sandbox is a machine of its own to the install script: its network is a
// node's, and what it writes to /etc, /usr/local, /var and /run goes to layers
// that vanish with it.
type sandbox struct {
	*testing.T
	node   *cluster.Node
	holder *exec.Cmd // keeps the mount namespace
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	b := &sandbox{T: t, node: unstarted(t)}
	layers := filepath.Join(b.node.Dir, "layers")
	script := "set -e\n"
	for _, dir := range []string{"etc", "usr/local", "var", "run"} {
		upper, work := filepath.Join(layers, dir, "upper"), filepath.Join(layers, dir, "work")
		script += fmt.Sprintf("mkdir -p %s %s; mount -t overlay overlay -o lowerdir=/%s,upperdir=%s,workdir=%s /%s\n", upper, work, dir, upper, work, dir)
	}
	b.holder = b.node.Command(context.Background(), "unshare", "-m", "sh", "-c", script+"echo ready\nexec sleep infinity")
	out, err := b.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.holder.Process.Kill()
		_ = b.holder.Wait()
	})
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatalf("the sandbox did not come up: %v", err)
	}
	return b
}

// try runs a shell command in the sandbox.
func (b *sandbox) try(command string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-m", "-n", "-t", fmt.Sprint(b.holder.Process.Pid), "sh", "-c", command)
	cmd.Env = append(os.Environ(), "ORCH_BIN="+b.node.Orch, "ORCH_DATA_DIR="+b.node.DataDir())
	cmd.WaitDelay = time.Second // the server that the script leaves behind may hold the pipe
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (b *sandbox) run(command string) string {
	b.Helper()
	out, err := b.try(command)
	if err != nil {
		b.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// TestInstall is the README's first command on a machine without systemd, then
// an upgrade under running pods, then the way back.
func TestInstall(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("this machine's systemd would be asked to start the service")
	}
	b := newSandbox(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	install := root + "/scripts/install.sh"
	if out := b.run(install); !strings.Contains(out, " Ready ") || !strings.Contains(out, "create deployment hello") {
		t.Errorf("install.sh printed:\n%s", out)
	}
	if out := b.run("/usr/local/bin/orch kubectl get nodes"); !strings.Contains(out, " Ready ") {
		t.Errorf("nodes: %s", out)
	}
	if mode := b.run("stat -c %a /etc/orch/kubeconfig.yaml"); mode != "600" {
		t.Errorf("mode of the kubeconfig: %s", mode)
	}
	b.run("orch kubectl create deployment hello --image=orch.local/hello && orch kubectl rollout status deployment/hello --timeout=60s")
	before, err := b.node.Processes()
	if err != nil {
		t.Fatal(err)
	}
	b.run(install)
	// A shim may be running a helper just then; what ran before must still run.
	after, err := b.node.Processes()
	if err != nil || slices.ContainsFunc(before, func(pid int) bool { return !slices.Contains(after, pid) }) {
		t.Errorf("processes of pods before and after an upgrade: %v, %v (%v)", before, after, err)
	}
	b.run(root + "/scripts/uninstall.sh --purge")
	if left, err := b.node.Processes(); err != nil || len(left) > 0 {
		t.Errorf("processes after uninstalling: %v (%v)", left, err)
	}
	if out := b.run("iptables-save; ip -o link"); strings.Contains(out, "ORCH") || strings.Contains(out, "orch") {
		t.Errorf("network after uninstalling:\n%s", out)
	}
	if out, err := b.try("ls /usr/local/bin/orch /etc/orch/kubeconfig.yaml " + b.node.DataDir()); err == nil {
		t.Errorf("files after uninstalling: %s", out)
	}
}
