// Package cluster starts real orch processes for tests and benchmarks: each
// node in its own network namespace and data directory, all joined by a bridge
// in a further namespace, so that nothing touches the network of the machine.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Orch is the executable under test: $ORCH, or bin/orch of this checkout.
func Orch() (string, error) {
	path := os.Getenv("ORCH")
	if path == "" {
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				path = filepath.Join(dir, "bin", "orch")
				break
			}
		}
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the executable under test is missing (run make): %w", err)
	}
	return path, nil
}

// patience is what anything may take on a busy machine.
const patience = 2 * time.Minute

// Node is one orch process with all that belongs to it.
type Node struct {
	Name       string
	IP         string
	Namespace  string // network namespace
	Dir        string // holds data, kubeconfig and log
	Kubeconfig string
	Orch       string   // the executable
	Args       []string // of the executable; may be changed before Start
	network    *Network
	server     *Node // whose API an agent joins; nil for a server

	router, routerIP string // of a node behind NAT
	process          *exec.Cmd
	reaping          sync.WaitGroup
	done             chan struct{} // closed when the process has ended
}

// NewNode makes a node with a directory and a network namespace of its own,
// joined to the network. args follow `orch server`, and win over the defaults
// here. The process is not started yet.
func (n *Network) NewNode(args ...string) (*Node, error) {
	node, err := n.newNode("server")
	if err != nil {
		return nil, err
	}
	node.Kubeconfig = filepath.Join(node.Dir, "kubeconfig.yaml")
	node.Args = append(append(node.Args, "--write-kubeconfig", node.Kubeconfig), args...)
	return node, nil
}

// NewAgent makes a node like NewNode for `orch agent`, which joins the server.
// The server must have been started: its token is read here.
func (n *Network) NewAgent(server *Node, args ...string) (*Node, error) {
	token, err := os.ReadFile(filepath.Join(server.DataDir(), "server", "agent-token"))
	if err != nil {
		return nil, fmt.Errorf("the server's token for agents: %w", err)
	}
	node, err := n.newNode("agent")
	if err != nil {
		return nil, err
	}
	node.server, node.Kubeconfig = server, server.Kubeconfig
	node.Args = append(append(node.Args, "--join", "https://"+server.IP+":6443", "--token", strings.TrimSpace(string(token))), args...)
	return node, nil
}

// NewServer makes a node like NewNode for a further server, which joins the
// first. That one must have been started: its token is read here.
func (n *Network) NewServer(first *Node, args ...string) (*Node, error) {
	token, err := os.ReadFile(filepath.Join(first.DataDir(), "server", "token"))
	if err != nil {
		return nil, fmt.Errorf("the server's token: %w", err)
	}
	join := []string{"--join", "https://" + first.IP + ":6443", "--token", strings.TrimSpace(string(token))}
	return n.NewNode(append(join, args...)...)
}

func (n *Network) newNode(mode string) (*Node, error) {
	orch, err := Orch()
	if err != nil {
		return nil, err
	}
	// Short, because the paths of unix sockets are limited.
	dir, err := os.MkdirTemp("/tmp", "o")
	if err != nil {
		return nil, err
	}
	i := n.nodes.Add(1)
	node := &Node{
		Name: fmt.Sprintf("node%d", i), IP: fmt.Sprintf("10.99.0.%d", 10+i), Dir: dir, Orch: orch,
		Namespace: fmt.Sprintf("orch-%s-%d", n.id, i), network: n,
	}
	node.Args = []string{mode, "--data-dir", node.DataDir(), "--node-name", node.Name, "--node-ip", node.IP,
		"--config", filepath.Join(dir, "config.yaml"),
		"--shutdown-grace-period", "0s"} // this machine's logind is left alone
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), nil, 0o600); err != nil {
		return nil, err
	}
	return node, n.connect(node.Namespace, fmt.Sprintf("v%d", i), node.IP)
}

// Network is what the node is joined to.
func (n *Node) Network() *Network { return n.network }

// DataDir is the node's --data-dir.
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "data") }

// LogFile is where orch's standard error goes.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "orch.log") }

// Restart ends orch as a crash would and starts it again.
func (n *Node) Restart() error {
	if err := n.Kill(); err != nil {
		return err
	}
	return n.Start()
}

// PID is the process id of orch.
func (n *Node) PID() int { return n.process.Process.Pid }

// Start starts orch and returns at once.
func (n *Node) Start() error {
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Only the network namespace differs: mounts must outlive a restart.
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.Namespace, n.Orch}, n.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.process, n.done = cmd, make(chan struct{})
	n.reaping.Go(func() { // Stop and Kill wait for it
		defer close(n.done)
		_ = cmd.Wait()
	})
	return nil
}

// Exited is closed when the process has ended.
func (n *Node) Exited() <-chan struct{} { return n.done }

// Running tells whether the process has not ended.
func (n *Node) Running() bool {
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// ExitCode of an ended process.
func (n *Node) ExitCode() int { return n.process.ProcessState.ExitCode() }

// Stop asks orch to stop and waits for it. Pods go on running.
func (n *Node) Stop() error { return n.signal(syscall.SIGTERM) }

// Kill ends orch as a crash would.
func (n *Node) Kill() error { return n.signal(syscall.SIGKILL) }

func (n *Node) signal(s syscall.Signal) error {
	if err := n.Resume(); err != nil { // a stopped process takes no other signal but SIGKILL
		return err
	}
	if err := n.process.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.done:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("orch did not end within %s of %s\n%s", patience, s, n.goroutines())
	}
}

// goroutines ends an orch that hangs, and gives what it was doing.
func (n *Node) goroutines() string {
	_ = n.process.Process.Signal(syscall.SIGQUIT) // the log tells
	select {
	case <-n.done:
	case <-time.After(10 * time.Second):
	}
	log, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	if at := bytes.LastIndex(log, []byte("SIGQUIT: quit")); at >= 0 {
		log = log[at:]
	}
	return string(log[:min(len(log), 256<<10)])
}

// WaitReady waits until the node is Ready.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		out, err := n.Kubectl(ctx, "wait", "--for=condition=Ready", "node/"+n.Name, "--timeout=30s")
		if err == nil {
			return nil
		}
		select {
		case <-n.done:
			return fmt.Errorf("orch ended with exit code %d:\n%s", n.ExitCode(), n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("node is not Ready: %s\n%s", out, n.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// LogTail is the end of orch's log, and the beginning of a crash in it.
func (n *Node) LogTail() string {
	data, _ := os.ReadFile(n.LogFile())
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	end := max(0, len(lines)-30)
	crash := slices.IndexFunc(lines, func(line string) bool {
		return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
	})
	if crash >= 0 && crash < end {
		return strings.Join(slices.Concat(lines[crash:min(crash+12, end)], []string{"…"}, lines[end:]), "\n")
	}
	return strings.Join(lines[end:], "\n")
}

// Kubectl runs the embedded kubectl and gives what it prints, errors included.
func (n *Node) Kubectl(ctx context.Context, args ...string) (string, error) {
	return n.KubectlInput(ctx, nil, args...)
}

// KubectlInput is Kubectl with standard input.
func (n *Node) KubectlInput(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	at := n
	if n.server != nil {
		at = n.server // the kubeconfig names the server by its loopback address
	}
	return output(at.Command(ctx, n.Orch, append([]string{"kubectl", "--kubeconfig", n.Kubeconfig}, args...)...), stdin)
}

// Exec runs a command in the node's network namespace.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	return output(n.Command(ctx, args[0], args[1:]...), nil)
}

// Command prepares a command in the node's network namespace.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + n.Namespace, name}, args...)...)
}

func output(cmd *exec.Cmd, stdin io.Reader) (string, error) {
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// Close ends orch and everything that it left: containers, mounts, cgroups,
// the namespace and the data.
func (n *Node) Close() error {
	var errs []error
	if n.process != nil {
		errs = append(errs, n.Stop())
	}
	errs = append(errs, killUnder(n.Dir))
	pods, _ := filepath.Glob(filepath.Join(n.DataDir(), "agent", "pods", "*"))
	for i := range pods {
		pods[i] = filepath.Base(pods[i])
	}
	removeCgroups(pods)
	errs = append(errs, unmountUnder(n.Dir), run("ip netns del "+n.Namespace), os.RemoveAll(n.Dir))
	return errors.Join(errs...)
}

// Dial connects to an address as programs on the node do.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialIn(ctx, n.Namespace, network, address)
}

// In runs do on a thread in the node's network namespace: sockets that it makes
// belong there.
func (n *Node) In(do func() error) error { return inNamespace(n.Namespace, do) }

// Config is the administrator's access to the API, from anywhere on this machine.
func (n *Node) Config() (*rest.Config, error) {
	if n.server != nil {
		return n.server.Config()
	}
	config, err := clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Dial = n.Dial
	config.QPS = -1
	return config, nil
}

// Mounts gives what is mounted below the node's directory.
func (n *Node) Mounts() ([]string, error) { return mountsUnder(n.Dir) }

// Processes gives the ids of the shims and of all containers.
func (n *Node) Processes() ([]int, error) { return processesUnder(n.Dir) }

// Start gives a test a cluster of one Ready server. It is taken down when the
// test ends; when the test failed, the end of orch's log is printed.
func Start(t testing.TB, args ...string) *Node {
	t.Helper()
	node, err := StartNetwork(t).NewNode(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", node.LogTail())
		}
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := node.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return node
}
