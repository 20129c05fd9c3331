package cases

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"orch/test/cluster"
)

const enough = time.Minute // for what takes moments, on a busy machine

// TestApi09KubectlEndsBySignals: the first SIGTERM and the first SIGINT end each
// command of kubectl that runs until it is told.
func TestApi09KubectlEndsBySignals(t *testing.T) {
	t.Parallel()
	node := cluster.Start(t)
	if err := node.ImportBusybox(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	pod := filepath.Join(node.Dir, "pod.yaml")
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: s}\nspec: {containers: [{name: c, image: " + cluster.BusyboxRef + ", command: [sleep, '100000']}]}\n"
	if err := os.WriteFile(pod, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"apply", "-f", pod}, {"wait", "--for=condition=Ready", "pod/s", "--timeout=90s"}} {
		if out, err := node.Kubectl(ctx, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		for begun, args := range map[string][]string{
			"Starting to serve": {"proxy", "--port=0"},
			"Forwarding from":   {"port-forward", "pod/s", ":8080"},
			"begun":             {"exec", "s", "--", "sh", "-c", "echo begun; sleep 100"},
			"":                  {"attach", "s"},
			"pod/s":             {"get", "pods", "-w", "-o", "name"},
		} {
			if err := endsBy(ctx, node, signal, begun, args); err != nil {
				t.Errorf("kubectl %s, %s: %v", strings.Join(args, " "), signal, err)
			}
		}
	}
}

// endsBy starts kubectl, waits until it prints begun, sends one signal, and wants it
// to end.
func endsBy(ctx context.Context, node *cluster.Node, signal syscall.Signal, begun string, args []string) error {
	cmd := node.Command(ctx, node.Orch, append([]string{"kubectl", "--kubeconfig", node.Kubeconfig}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	defer func() { _ = cmd.Process.Kill() }()
	if begun == "" { // prints nothing: its connection to the server is the sign
		err = connected(ctx, cmd.Process.Pid)
	} else {
		err = readUntil(out, begun)
	}
	if err != nil {
		return err
	}
	if err := cmd.Process.Signal(signal); err != nil {
		return err
	}
	timer := time.AfterFunc(enough, func() { ended <- errors.New("goes on"); _ = cmd.Process.Kill() })
	err = cmd.Wait()
	if !timer.Stop() {
		return <-ended
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

func readUntil(out interface{ Read([]byte) (int, error) }, word string) error {
	var seen strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := out.Read(buffer)
		seen.Write(buffer[:n])
		if strings.Contains(seen.String(), word) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w after %q", err, seen.String())
		}
	}
}

// connected waits until the process has a TCP connection, and so was started as far
// as it goes by itself.
func connected(ctx context.Context, pid int) error {
	for {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		if err != nil {
			return err
		}
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, file := range files {
			link, err := os.Readlink(file)
			inode, socket := strings.CutPrefix(link, "socket:[")
			if err == nil && socket && strings.Contains(string(table), " "+strings.TrimSuffix(inode, "]")+" ") {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestNode20ConfigFile does what the script does, and its variants: the file's text
// is what the server gets.
func TestNode20ConfigFile(t *testing.T) {
	t.Parallel()
	network := cluster.StartNetwork(t)
	for name, test := range map[string]struct{ config, token, mode string }{
		"empty keys":   {"token:\nagent-token: ~\ndisable:\nwrite-kubeconfig-mode: 0644\n", "", "644"},
		"octal digits": {"token: 0123456\nwrite-kubeconfig-mode: 0640\n", "0123456", "640"},
		"big integer":  {"token: 12345678901234567890\n", "12345678901234567890", "600"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := closing(t, network, "--disable-agent")
			if err := os.WriteFile(filepath.Join(node.Dir, "config.yaml"), []byte(test.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
			info := waitForFile(t, node, node.Kubeconfig)
			if mode := fmt.Sprintf("%o", info.Mode().Perm()); mode != test.mode {
				t.Errorf("the kubeconfig has mode %s, want %s", mode, test.mode)
			}
			for _, file := range []string{"token", "agent-token"} {
				data, err := os.ReadFile(filepath.Join(node.DataDir(), "server", file))
				if err != nil {
					t.Fatal(err)
				}
				secret := string(data[strings.LastIndexByte(string(data), ':')+1:])
				secret = strings.TrimSpace(secret)
				if file == "token" && test.token != "" && secret != test.token {
					t.Errorf("the token's secret is %q, want %q", secret, test.token)
				}
				if (file != "token" || test.token == "") && len(secret) != 32 {
					t.Errorf("the secret in %s is %q, want one that was made", file, secret)
				}
			}
		})
	}
	node := closing(t, network, "--disable-agent")
	if err := os.WriteFile(filepath.Join(node.Dir, "config.yaml"), []byte("tls-san: a.test\ntls-san: b.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := node.Exec(t.Context(), append([]string{node.Orch}, node.Args...)...)
	if err == nil || !strings.Contains(out, `config.yaml:2: key "tls-san" is there already, in line 1`) {
		t.Errorf("a key that is given twice: %v %s", err, out)
	}
	if _, err := os.Stat(node.DataDir()); err == nil {
		t.Error("something was written before the config file was refused")
	}
}

// closing makes a server that is removed with the test.
func closing(t *testing.T, network *cluster.Network, args ...string) *cluster.Node {
	t.Helper()
	node, err := network.NewNode(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of %s's log:\n%s", node.Name, node.LogTail())
		}
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// waitForFile waits for what a server that was started writes.
func waitForFile(t *testing.T, node *cluster.Node, path string) os.FileInfo {
	t.Helper()
	deadline := time.After(enough)
	for {
		if info, err := os.Stat(path); err == nil {
			return info
		}
		select {
		case <-node.Exited():
			t.Fatalf("orch ended:\n%s", node.LogTail())
		case <-deadline:
			t.Fatalf("%s is not there:\n%s", path, node.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestNode22TwoOnOnePath: a second orch that has its own folder at the data
// directory's path, in a mount namespace of its own, leaves the first one's pods
// alone; one that has the same folder there is told who holds it.
func TestNode22TwoOnOnePath(t *testing.T) {
	t.Parallel()
	first := cluster.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"run", "hello", "--image=orch.local/hello"}, {"wait", "--for=condition=Ready", "pod/hello", "--timeout=90s"},
	} {
		if out, err := first.Kubectl(ctx, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	before, err := first.Processes()
	if err != nil || len(before) == 0 {
		t.Fatalf("processes of the pod: %v %v", before, err)
	}

	// The same folder: refused, whatever else differs.
	out, err := first.Exec(ctx, append(append([]string{first.Orch}, first.Args...), "--https-listen-port", "16443")...)
	if want := fmt.Sprintf("another orch (process %d on ", first.PID()); err == nil || !strings.Contains(out, want) {
		t.Errorf("a second orch on one folder: %v %s, want %q", err, out, want)
	}

	// Another folder at the same path, in a mount namespace and network of its own.
	second := closing(t, first.Network())
	layer := filepath.Join(second.Dir, "data")
	if err := os.MkdirAll(layer, 0o700); err != nil {
		t.Fatal(err)
	}
	second.Args = append(second.Args, "--data-dir", first.DataDir())
	script := fmt.Sprintf(`mount --bind %s %s && exec "$0" "$@"`, layer, first.DataDir())
	cmd := second.Command(ctx, "unshare", append([]string{"-m", "sh", "-c", script, second.Orch}, second.Args...)...)
	log, err := os.Create(second.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := readySecond(ctx, second); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if strings.Contains(second.LogTail(), "ending what an interrupted start left") {
		t.Error("the second orch ends shims of the first")
	}
	after, err := first.Processes()
	if err != nil || len(after) < len(before) {
		t.Errorf("processes of the pod before and after: %v, %v (%v)", before, after, err)
	}
}

// readySecond waits for a server that the harness did not start.
func readySecond(ctx context.Context, n *cluster.Node) error {
	for {
		out, err := n.Kubectl(ctx, "wait", "--for=condition=Ready", "node/"+n.Name, "--timeout=30s")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the second orch is not ready: %s\n%s", out, n.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
