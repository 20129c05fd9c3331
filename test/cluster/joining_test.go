package cluster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// further adds a server to the cluster of first.
func further(t *testing.T, first *cluster.Node, args ...string) *cluster.Node {
	t.Helper()
	n, err := first.Network().NewServer(first, append([]string{"--disable-agent"}, args...)...)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of %s's log:\n%s", n.Name, n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, n.Start())
	return n
}

func fileOf(t *testing.T, n *cluster.Node, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.DataDir(), "server", name))
	must(t, err)
	return strings.TrimSpace(string(data))
}

// refused waits until the process has ended with an error that says why.
func refused(t *testing.T, n *cluster.Node, want string) {
	t.Helper()
	select {
	case <-n.Exited():
	case <-time.After(patience):
		t.Fatalf("%s goes on:\n%s", n.Name, n.LogTail())
	}
	if tail := n.LogTail(); n.ExitCode() != 1 || !strings.Contains(tail, want) {
		t.Errorf("%s: exit code %d, log:\n%s", n.Name, n.ExitCode(), tail)
	}
}

// Tokens are rotated on one server: the old ones are void at every server, the
// files follow, and machines that have joined go on, also after a restart with
// what they were started with.
func TestTokenRotation(t *testing.T) {
	first := cluster.Start(t)
	second, third := further(t, first), further(t, first)
	agent := join(t, first)
	eventually(t, func() error {
		out, err := first.Exec(t.Context(), first.Orch, "member", "list", "--kubeconfig", first.Kubeconfig)
		if err != nil || strings.Count(out, "connected") != 3 || strings.Contains(out, "learner") {
			return fmt.Errorf("members: %s", out)
		}
		return nil
	})
	old := map[string]string{"token": fileOf(t, first, "token"), "agent-token": fileOf(t, first, "agent-token")}
	stale, err := first.Network().NewServer(second, "--disable-agent") // takes the old token
	must(t, err)
	t.Cleanup(func() { must(t, stale.Close()) })
	late := newAgent(t, first)

	out, err := second.Exec(t.Context(), second.Orch, "token", "rotate", "--kubeconfig", second.Kubeconfig)
	if err != nil {
		t.Fatal(out)
	}
	must(t, stale.Start())
	must(t, late.Start())
	refused(t, stale, "the token was rotated")
	refused(t, late, "the token was rotated")
	for name, was := range old {
		now := fileOf(t, second, name)
		if now == was || !strings.Contains(out, now) {
			t.Errorf("%s is %s, was %s; rotate printed:\n%s", name, now, was, out)
		}
		eventually(t, func() error {
			for _, n := range []*cluster.Node{first, third} {
				if got := fileOf(t, n, name); got != now {
					return fmt.Errorf("%s of %s is %s, want %s", name, n.Name, got, now)
				}
			}
			return nil
		})
	}
	must(t, third.Restart()) // its flags have the old token
	secret := old["token"][strings.LastIndexByte(old["token"], ':')+1:]
	eventually(t, func() error { // until it is up again, and never otherwise
		out, err := third.Exec(t.Context(), "curl", "-sk", "-u", "server:"+secret, "-d", `{"name":"x"}`, "https://127.0.0.1:6443/v1-orch/server/join")
		if err == nil && strings.Contains(out, "files") {
			t.Fatal("a server that was started with the old token hands out the cluster's keys for it")
		}
		if !strings.Contains(out, "the token was rotated") {
			return fmt.Errorf("%v %s", err, out)
		}
		return nil
	})
	must(t, agent.Restart())
	must(t, agent.WaitReady(t.Context()))
	join(t, third) // reads the new token there
}

// A node that was installed anew comes back under its name once the machine
// that had it is gone, and an address may change.
func TestReinstalledNode(t *testing.T) {
	server, agent := two(t)
	again := newAgent(t, server, "--node-name", agent.Name)
	must(t, again.Start())
	eventually(t, func() error {
		if tail := again.LogTail(); !strings.Contains(tail, "waiting for the node's name") || !strings.Contains(tail, "is running with another key") {
			return fmt.Errorf("no line of progress: %s", tail)
		}
		return nil
	})
	must(t, agent.Kill())
	eventually(t, func() error {
		if !again.Running() { // it waits for a while, and a service manager starts it again
			must(t, again.Start())
		}
		out, err := server.Kubectl(t.Context(), "get", "node", agent.Name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out != again.IP+" True" {
			return fmt.Errorf("the node is %s; log: %s", out, again.LogTail())
		}
		return nil
	})

	must(t, again.Stop())
	move(t, again)
	must(t, again.Start())
	eventually(t, func() error {
		out, err := server.Kubectl(t.Context(), "get", "node", agent.Name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out != again.IP+" True" {
			return fmt.Errorf("the node is %s; log: %s", out, again.LogTail())
		}
		return nil
	})
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello")
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")
	ip := kubectl(t, server, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[0].status.podIP}")
	eventually(t, func() error {
		_, err := get(t.Context(), server, "http://"+ip+":8080")
		return err
	})
}

// A further server does not join under a name that is in use, with a token for
// agents or another version.
func TestServerJoinErrors(t *testing.T) {
	first := cluster.Start(t)
	refused(t, further(t, first, "--token", fileOf(t, first, "agent-token")), "this one is for agents")
	refused(t, further(t, first, "--token", fileOf(t, first, "token")+"x"), "the token's secret is wrong")
	refused(t, further(t, first, "--node-name", first.Name), "choose another --node-name")
	secret := fileOf(t, first, "token")
	secret = secret[strings.LastIndexByte(secret, ':')+1:]
	out, err := first.Exec(t.Context(), "curl", "-sk", "-u", "server:"+secret, "-d", `{"name":"x","version":"v1.35.0"}`, "https://127.0.0.1:6443/v1-orch/server/join")
	if err != nil || !strings.Contains(out, "servers may be 1 minor version apart") {
		t.Errorf("a server two versions older: %v %s", err, out)
	}
}

// move gives a stopped node another address.
func move(t *testing.T, n *cluster.Node) {
	t.Helper()
	moved := "10.99.1." + n.IP[strings.LastIndexByte(n.IP, '.')+1:]
	for _, command := range []string{"addr flush dev eth0", "addr add " + moved + "/16 dev eth0", "route add default via 10.99.0.1"} {
		if out, err := exec.Command("ip", append([]string{"-n", n.Namespace}, strings.Fields(command)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %s", command, out)
		}
	}
	n.IP = moved
	n.Args = append(n.Args, "--node-ip", moved)
}

// Servers may be started in any order, and get other addresses one by one, the
// one that all others were told of as well.
func TestServersMove(t *testing.T) {
	first := cluster.Start(t)
	must(t, first.Stop())
	second := further(t, first)
	eventually(t, func() error {
		if tail := second.LogTail(); !strings.Contains(tail, "waiting for the server") {
			return fmt.Errorf("no line of progress: %s", tail)
		}
		return nil
	})
	must(t, first.Start())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	further(t, first)
	must(t, first.WaitVoters(ctx, 3))
	for _, n := range []*cluster.Node{second, first} {
		must(t, n.Stop())
		move(t, n)
		must(t, n.Start())
		eventually(t, func() error {
			out, err := n.Exec(ctx, n.Orch, "member", "list", "--kubeconfig", n.Kubeconfig)
			if err != nil || !strings.Contains(out, n.IP+":6443") || strings.Count(out, "connected") != 3 {
				return fmt.Errorf("members: %s; log: %s", out, n.LogTail())
			}
			return nil
		})
	}
	kubectl(t, first, "create", "configmap", "moved")
}
