package ha

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/test/cluster"
)

// TestAgentLeavesServer: a server that the agent reaches, but that does nothing
// for it, because it is cut off from the other servers or hangs, is left for
// another one before the node counts as gone.
func TestAgentLeavesServer(t *testing.T) {
	all := start(t)
	first, rest := all[0], all[1:]
	agent, err := first.Network().NewAgent(first)
	agent = launchAgent(t, agent, err)
	for _, f := range []struct {
		name     string
		do, undo func() error
	}{
		{"cut off from the others", func() error { return cluster.Partition(all[:1], rest) }, func() error { return faults()[2].undo(first, rest) }},
		{"paused", first.Pause, first.Resume},
	} {
		all.await(t, "agent that knows all servers", func() bool {
			known, _ := os.ReadFile(filepath.Join(agent.DataDir(), "agent", "servers.json"))
			return strings.Count(string(known), ":6443") == 3
		})
		// It asks the one first that it joined by.
		if err := agent.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.do(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ready := readyCondition(t, all, rest[0], agent)
		all.await(t, "renewal of the node's lease while its server is "+f.name, func() bool {
			lease, err := client(t, rest[0]).CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), agent.Name, metav1.GetOptions{})
			// The first one may have been on its way.
			return err == nil && lease.Spec.RenewTime.After(began.Add(time.Second))
		})
		t.Logf("server %s: the lease was renewed at another one after %v; the node was %s since %v", f.name, time.Since(began), ready.Status, ready.LastTransitionTime)
		if now := readyCondition(t, all, rest[0], agent); now.LastTransitionTime != ready.LastTransitionTime {
			t.Errorf("server %s: the node is %s since %v", f.name, now.Status, now.LastTransitionTime)
		}
		if err := f.undo(); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, first)
	}
}

func readyCondition(t *testing.T, all servers, at, n *cluster.Node) (ready corev1.NodeCondition) {
	t.Helper()
	all.await(t, "state of node "+n.Name, func() bool {
		node, err := client(t, at).CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				ready = c
			}
		}
		return true
	})
	return ready
}
