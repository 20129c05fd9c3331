package upgrade

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"orch/test/cluster"
	"orch/test/load"
	"orch/test/load/stats"
)

// patience is what anything may take on a busy machine.
const patience = 2 * time.Minute

// TestUpgrade replaces the executable of three servers and two agents one by
// one, while a pod asks a service and clients write through every server. No
// container may notice, no request to the service may fail, and no acknowledged
// write may be lost.
func TestUpgrade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, namespaces and iptables are real here")
	}
	old, next := previous(t), current(t)
	c := start(t, old)
	first := c.Servers[0]
	asking, err := load.Start(t.Context(), first, c.Agents[0], 6, 0)
	must(t, err)
	before, running := containers(t, first), processes(t, c.Agents)
	began := time.Now()
	writing := write(t, c.Servers)

	for _, n := range c.Servers {
		upgrade(t, n, next)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		must(t, n.WaitVoters(ctx, len(c.Servers)))
		cancel()
	}
	for _, n := range c.Agents {
		upgrade(t, n, next)
		// Its streams work once it runs; what the API says of it may be older.
		await(t, "the link of "+n.Name, func() error {
			_, err := first.Kubectl(t.Context(), "get", "--raw", "/api/v1/nodes/"+n.Name+"/proxy/healthz")
			return err
		})
		must(t, n.WaitReady(t.Context()))
	}

	writing.finish(t, c.Servers)
	all, err := asking.Stats(t.Context())
	must(t, err)
	service, api := all[stats.Service], all[stats.API]
	for _, f := range service.Between(began, time.Now()) {
		t.Errorf("a request failed: %+v", f)
	}
	t.Logf("%d requests, p99 %s; of %d to the kubernetes Service %d failed", service.Requests, service.P99, api.Requests, len(api.Between(began, time.Now())))
	if after := containers(t, first); after != before {
		t.Errorf("containers before and after:\n%s\n%s", before, after)
	}
	for i, now := range processes(t, c.Agents) {
		if !slices.Equal(now, running[i]) {
			t.Errorf("processes on %s before and after: %v %v", c.Agents[i].Name, running[i], now)
		}
	}
	// The new executables do their work.
	kubectl(t, first, "scale", "deployment", "hello", "--replicas=10")
	kubectl(t, first, "rollout", "status", "deployment/hello", "--timeout=180s")
}

// upgrade stops the node in order and starts it with the new executable.
func upgrade(t *testing.T, n *cluster.Node, next string) {
	t.Helper()
	must(t, n.Stop())
	if code := n.ExitCode(); code != 0 {
		t.Errorf("%s ended with exit code %d:\n%s", n.Name, code, n.LogTail())
	}
	n.Orch = next
	must(t, n.Start())
}

func start(t *testing.T, orch string) *load.Cluster {
	t.Helper()
	network := cluster.StartNetwork(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := load.NewCluster(ctx, network, orch)
	t.Cleanup(func() {
		for _, n := range c.Nodes() {
			if t.Failed() {
				t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail())
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, err)
	return c
}

// containers are all of the deployment with their ids and restarts.
func containers(t *testing.T, n *cluster.Node) string {
	t.Helper()
	return kubectl(t, n, "get", "pods", "-l", "app=hello", "-o",
		"jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount} {.status.podIP}\n{end}")
}

// processes are the ids of all shims and containers on each node.
func processes(t *testing.T, nodes []*cluster.Node) (pids [][]int) {
	t.Helper()
	for _, n := range nodes {
		found, err := n.Processes()
		must(t, err)
		slices.Sort(found)
		pids = append(pids, found)
	}
	return pids
}

func kubectl(t *testing.T, n *cluster.Node, args ...string) string {
	t.Helper()
	out, err := n.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("kubectl %v: %v: %s", args, err, out)
	}
	return out
}

func await(t *testing.T, what string, ok func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %v", what, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
