package cluster

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
)

// Sandbox is a machine of its own to the install script: its network is a
// node's, it sees its own processes alone, and what it writes to /etc,
// /usr/local, /var and /run goes to layers that vanish with it.
type Sandbox struct {
	*testing.T
	Node *Node
	init string // process that keeps the namespaces
}

// NewSandbox makes one with the network of a node that was not started.
func NewSandbox(t *testing.T, node *Node) *Sandbox {
	t.Helper()
	b := &Sandbox{T: t, Node: node}
	layers := filepath.Join(b.Node.Dir, "layers")
	script := "set -e\n"
	for _, dir := range []string{"etc", "usr/local", "var", "run"} {
		upper, work := filepath.Join(layers, dir, "upper"), filepath.Join(layers, dir, "work")
		script += fmt.Sprintf("mkdir -p %s %s; mount -t overlay overlay -o lowerdir=/%s,upperdir=%s,workdir=%s /%s\n", upper, work, dir, upper, work, dir)
	}
	// Whatever init system this machine has, the sandbox starts without one.
	script += "rm -rf /run/systemd /run/orch* /etc/orch /usr/local/bin/orch*; echo ready; while :; do sleep 1 & wait; done"
	holder := b.Node.Command(context.Background(), "unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatalf("the sandbox did not come up: %v", err)
	}
	pid := holder.Process.Pid
	child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	b.init = strings.TrimSpace(string(child))
	return b
}

// Try runs a shell command in the sandbox, with env (NAME=value) and none of
// our own variables.
func (b *Sandbox) Try(command string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-m", "-n", "-p", "-t", b.init, "sh", "-c", command)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ORCH") }),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ORCH_DATA_DIR="+b.Node.DataDir(), "ORCH_NODE_NAME="+b.Node.Name)
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = time.Second // the server that the script leaves behind may hold the pipe
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Shell is Try for what must succeed.
func (b *Sandbox) Shell(command string, env ...string) string {
	b.Helper()
	out, err := b.Try(command, env...)
	if err != nil {
		b.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// Write makes an executable file in the sandbox.
func (b *Sandbox) Write(path, content string) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "nsenter", "-m", "-t", b.init, "sh", "-c", "mkdir -p "+filepath.Dir(path)+" && cat >"+path+" && chmod 755 "+path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("write %s: %v %s", path, err, out)
	}
}

// Pods gives the processes of the pods.
func (b *Sandbox) Pods() []int {
	b.Helper()
	pids, err := b.Node.Processes()
	if err != nil {
		b.Fatal(err)
	}
	return pids
}

// Orch gives the id of the orch process, as the sandbox counts.
func (b *Sandbox) Orch() string {
	return b.Shell(`for d in /proc/[0-9]*; do case $(readlink $d/exe) in /usr/local/bin/orch*) case $(tr '\0' ' ' <$d/cmdline) in *" server "*|*" agent "*) echo ${d#/proc/};; esac;; esac; done`)
}
