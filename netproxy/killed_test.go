package netproxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orch/netproxy/wire"
)

const agentEnv = "ORCH_TEST_AGENT_DIR"

// TestKilled kills an agent with SIGKILL amid calls, several times, and checks
// that a later one owns all that is there: no address twice, nothing left once
// every sandbox is removed.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(agentEnv); dir != "" {
		runAgent(t, dir)
		return
	}
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	bare, links := n.saved(), len(n.links())
	n.stop()
	const rounds, burst = 4, 12
	for round := range rounds {
		agent := n.startAgent()
		var calls sync.WaitGroup
		answered := make(chan struct{}, burst)
		for i := range burst {
			id := fmt.Sprintf("pod-%d-%d", round, i)
			ns := n.namespace(id)
			must(t, ns.Close())
			calls.Go(func() {
				_, _ = n.call("ADD", id, wire.PortMapping{HostPort: uint16(9000 + round*burst + i), ContainerPort: 80, Protocol: "tcp"})
				answered <- struct{}{}
			})
		}
		for range round * 3 {
			<-answered
		}
		must(t, agent.Process.Kill())
		_ = agent.Wait()
		calls.Wait()
	}
	n.start()
	owners := make(map[string]string)
	records, _ := filepath.Glob(filepath.Join(n.dataDir, "agent/cni/sandboxes/*.json"))
	for _, path := range records {
		data, err := os.ReadFile(path)
		must(t, err)
		_, rest, _ := strings.Cut(string(data), `"addr":"`)
		addr, _, _ := strings.Cut(rest, `"`)
		if owners[addr] != "" {
			t.Errorf("%s is held by %s and %s", addr, owners[addr], path)
		}
		owners[addr] = path
	}
	t.Logf("%d of %d sandboxes on record", len(records), rounds*burst)
	for round := range rounds {
		for i := range burst {
			response, err := n.call("DEL", fmt.Sprintf("pod-%d-%d", round, i))
			must(t, err)
			if response.Error != nil {
				t.Error(response.Error)
			}
		}
	}
	must(t, n.proxy.engine.Flush(context.Background()))
	if after := n.saved(); after != bare {
		t.Errorf("rules left behind:\n%s\nbefore:\n%s", after, bare)
	}
	if left := n.links(); len(left) != links {
		t.Errorf("links left behind: %v", left)
	}
}

// startAgent runs a Proxy in a process of its own, in this machine's namespaces.
func (n *node) startAgent() *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), agentEnv+"="+n.dataDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ready, err := cmd.StdoutPipe()
	must(n.t, err)
	must(n.t, cmd.Start())
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		n.t.Fatalf("the agent does not start: %v", err)
	}
	return cmd
}

// runAgent is the agent's process: it writes a byte when ready and runs until killed.
func runAgent(t *testing.T, dir string) {
	n := &node{t: t, dataDir: dir, client: emptyCluster()}
	n.start()
	fmt.Print(".")
	select {}
}
