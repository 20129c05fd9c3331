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

// TestNode08InstallerLeavesWhatRuns: an emptied variable is taken back and the
// server runs with the default; whatever makes no sense is said at once, and the
// server that runs goes on as it was.
func TestNode08InstallerLeavesWhatRuns(t *testing.T) {
	t.Parallel()
	network := cluster.StartNetwork(t)
	b := cluster.NewSandbox(t, closing(t, network))
	install, err := filepath.Abs("../../scripts/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	from := "ORCH_BIN=" + b.Node.Orch
	b.Shell(install, from, "ORCH_LOG_LEVEL=debug")
	if got := b.Shell("grep ORCH_LOG_LEVEL /etc/orch/orch.env"); got != `ORCH_LOG_LEVEL="debug"` {
		t.Errorf("the settings hold %s", got)
	}
	out := b.Shell(install, from, "ORCH_LOG_LEVEL=")
	if !strings.Contains(out, " Ready ") {
		t.Errorf("with a variable that is taken back:\n%s", out)
	}
	if _, err := b.Try("grep ORCH_LOG_LEVEL /etc/orch/orch.env"); err == nil {
		t.Error("the setting was not taken back")
	}
	pid, settings := b.Orch(), b.Shell("cat /etc/orch/orch.env")
	for want, env := range map[string][]string{
		"did you mean ORCH_NODE_NAME?":            {"ORCH_NODENAME=a"},
		"ORCH_FLAG_OF_NOBODY is neither a flag":   {"ORCH_FLAG_OF_NOBODY=a"},
		`--log-level "loud"`:                      {"ORCH_LOG_LEVEL=loud"},
		"--https-listen-port 70000":               {"ORCH_HTTPS_LISTEN_PORT=70000"},
		`could not parse "many" as int value`:     {"ORCH_HTTPS_LISTEN_PORT=many"},
		"founded with 10.43.0.0/16":               {"ORCH_SERVICE_CIDR=10.50.0.0/16"},
		"--token: not a join token":               {"ORCH_TOKEN=a::b"},
		`--disable "dsn"`:                         {"ORCH_DISABLE=dsn"},
		"--token-file: open /no/such/file":        {"ORCH_TOKEN_FILE=/no/such/file"},
		"https://10.99.0.77:6443: cannot be aske": {"ORCH_EXEC=server", "ORCH_JOIN=https://10.99.0.77:6443", "ORCH_TOKEN=K10" + strings.Repeat("ab", 32) + "::server:a"},
	} {
		out, err := b.Try(install, append(env, from)...)
		if err == nil || !strings.Contains(out, want) && !strings.Contains(out, "belongs to another cluster") || !strings.Contains(out, "nothing was changed") {
			t.Errorf("%v: %v\n%s\nwant %q", env, err, out, want)
		}
		if now := b.Shell("cat /etc/orch/orch.env"); now != settings {
			t.Errorf("%v: the settings became\n%s", env, now)
		}
	}
	b.Shell("sed -i '1i cluster-domian: a' /etc/orch/config.yaml 2>/dev/null || echo 'cluster-domian: a' >/etc/orch/config.yaml")
	if out, err := b.Try(install, from); err == nil || !strings.Contains(out, "did you mean cluster-domain?") || !strings.Contains(out, "goes on running as it was") {
		t.Errorf("with a config file that holds a misspelt key: %v\n%s", err, out)
	}
	b.Shell("rm /etc/orch/config.yaml")
	if now := b.Orch(); now != pid {
		t.Errorf("orch was process %s and is %q", pid, now)
	}
	b.Shell("orch kubectl get --raw /readyz")
	b.Shell("orch-uninstall.sh")
}

// TestInstallAgentRefused: a node's installation that cannot work is told so at
// once, and nothing is left of it.
func TestInstallAgentRefused(t *testing.T) {
	t.Parallel()
	network := cluster.StartNetwork(t)
	server := closing(t, network, "--disable-agent")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	waitForFile(t, server, server.Kubeconfig)
	data, err := os.ReadFile(filepath.Join(server.DataDir(), "server", "agent-token"))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(data))
	b := cluster.NewSandbox(t, closing(t, network))
	install, err := filepath.Abs("../../scripts/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + server.IP
	for want, env := range map[string][]string{
		"cannot be asked now":            {"ORCH_URL=" + url + ":6444", "ORCH_TOKEN=" + token}, // a wrong port
		"the token's secret is wrong":    {"ORCH_URL=" + url + ":6443", "ORCH_TOKEN=" + token + "x"},
		"is not the server that the tok": {"ORCH_URL=" + url + ":6443", "ORCH_TOKEN=K10" + strings.Repeat("ab", 32) + "::node:a"},
		"agent-token there":              {"ORCH_URL=" + url + ":6443", "ORCH_TOKEN=sesame"},
		"of the form https://HOST":       {"ORCH_URL=" + server.IP + ":6443", "ORCH_TOKEN=" + token},
		"neither a flag of orch agent":   {"ORCH_URL=" + url + ":6443", "ORCH_TOKEN=" + token, "ORCH_CLUSTER_CIDR=10.1.0.0/16"},
	} {
		out, err := b.Try(install, append(env, "ORCH_BIN="+b.Node.Orch)...)
		if err == nil || !strings.Contains(out, want) || !strings.Contains(out, "nothing was changed") {
			t.Errorf("%v: %v\n%s\nwant %q", env, err, out, want)
		}
	}
	if out, err := b.Try("ls -d /usr/local/bin/*orch* /etc/orch $ORCH_DATA_DIR 2>/dev/null"); err == nil || out != "" {
		t.Errorf("left behind: %s", out)
	}
	out := b.Shell(install, "ORCH_URL="+url+":6444", "ORCH_TOKEN="+token, "ORCH_SKIP_START=true", "ORCH_BIN="+b.Node.Orch)
	if !strings.Contains(out, "cannot be asked now") || !strings.Contains(out, "it is not started") {
		t.Errorf("without a start:\n%s", out)
	}
	// On such a machine kubectl says where to go.
	if out, err := b.Try(install, "ORCH_URL="+url+":6443", "ORCH_TOKEN="+token, "ORCH_BIN="+b.Node.Orch); err != nil {
		t.Fatalf("%v %s\n%s", err, out, b.Shell("cat /var/log/orch.log; cat /etc/orch/orch.env"))
	}
	if out, err := b.Try("orch kubectl get pods", "HOME=/nowhere"); err == nil || !strings.Contains(out, "node of the cluster of "+url+":6443") {
		t.Errorf("kubectl on an agent: %v\n%s", err, out)
	}
	b.Shell("orch-uninstall.sh")
}
