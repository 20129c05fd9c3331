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
// node's, it sees its own processes alone, and what it writes to /etc,
// /usr/local, /var and /run goes to layers that vanish with it.
type sandbox struct {
	*testing.T
	node *cluster.Node
	init string // process that keeps the namespaces
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts")
	}
	b := &sandbox{T: t, node: unstarted(t)}
	layers := filepath.Join(b.node.Dir, "layers")
	script := "set -e\n"
	for _, dir := range []string{"etc", "usr/local", "var", "run"} {
		upper, work := filepath.Join(layers, dir, "upper"), filepath.Join(layers, dir, "work")
		script += fmt.Sprintf("mkdir -p %s %s; mount -t overlay overlay -o lowerdir=/%s,upperdir=%s,workdir=%s /%s\n", upper, work, dir, upper, work, dir)
	}
	// Whatever init system this machine has, the sandbox starts without one.
	script += "rm -rf /run/systemd /run/orch* /etc/orch /usr/local/bin/orch*; echo ready; while :; do sleep 1 & wait; done"
	holder := b.node.Command(context.Background(), "unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
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

// try runs a shell command in the sandbox, with env (NAME=value) and none of
// our own variables.
func (b *sandbox) try(command string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-m", "-n", "-p", "-t", b.init, "sh", "-c", command)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ORCH") }),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ORCH_DATA_DIR="+b.node.DataDir(), "ORCH_NODE_NAME="+b.node.Name)
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = time.Second // the server that the script leaves behind may hold the pipe
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (b *sandbox) run(command string, env ...string) string {
	b.Helper()
	out, err := b.try(command, env...)
	if err != nil {
		b.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// write makes an executable file in the sandbox.
func (b *sandbox) write(path, content string) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "nsenter", "-m", "-t", b.init, "sh", "-c", "mkdir -p "+filepath.Dir(path)+" && cat >"+path+" && chmod 755 "+path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("write %s: %v %s", path, err, out)
	}
}

// pods gives the processes of the pods.
func (b *sandbox) pods() []int {
	b.Helper()
	pids, err := b.node.Processes()
	if err != nil {
		b.Fatal(err)
	}
	return pids
}

// orch gives the id of the orch process, as the sandbox counts.
func (b *sandbox) orch() string {
	return b.run(`for d in /proc/[0-9]*; do case $(readlink $d/exe) in /usr/local/bin/orch*) case $(tr '\0' ' ' <$d/cmdline) in *" server "*|*" agent "*) echo ${d#/proc/};; esac;; esac; done`)
}

// fakeSystemd stands in for systemd: it really starts what the unit says.
func (b *sandbox) fakeSystemd() {
	b.run("mkdir -p /run/systemd/system /etc/systemd/system")
	b.write("/usr/local/bin/journalctl", "#!/bin/sh\ntail -n 5 /var/log/fake.log\n")
	b.write("/usr/local/bin/systemctl", `#!/bin/sh
echo "$*" >>/var/log/systemctl.calls
unit=/etc/systemd/system/orch.service
up() { [ -s /run/fake.pid ] && readlink /proc/$(cat /run/fake.pid)/exe >/dev/null; }
down() { up && kill $(cat /run/fake.pid); while up; do sleep 0.1; done; }
case "$*" in
"is-active -q orch") up && grep -q "node is ready" /var/log/fake.log ;;
"stop orch") down ;;
"restart --no-block orch")
	down
	: >/var/log/fake.log
	(
		for file in $(sed -n 's/^EnvironmentFile=//p' $unit); do set -a; . $file; set +a; done
		exec setsid $(sed -n 's/^ExecStart=//p' $unit)
	) </dev/null >>/var/log/fake.log 2>&1 &
	echo $! >/run/fake.pid ;;
esac
`)
}

// fakeOpenRC stands in for OpenRC in the same way.
func (b *sandbox) fakeOpenRC() {
	b.write("/usr/local/sbin/openrc-run", "#!/bin/sh\nexit 1\n")
	b.write("/usr/local/sbin/rc-update", "#!/bin/sh\necho \"rc-update $*\" >>/var/log/rc.calls\n")
	b.write("/usr/local/sbin/rc-service", `#!/bin/sh
echo "rc-service $*" >>/var/log/rc.calls
. /etc/init.d/orch
up() { [ -s $pidfile ] && readlink /proc/$(cat $pidfile)/exe >/dev/null; }
down() { up && kill $(cat $pidfile); while up; do sleep 0.1; done; }
case "$1 $2" in
"orch status") up ;;
"orch stop") stop_pre; down ;;
"orch restart")
	down
	start_pre
	setsid $command $command_args </dev/null >>$output_log 2>>$error_log &
	echo $! >$pidfile ;;
esac
`)
}
