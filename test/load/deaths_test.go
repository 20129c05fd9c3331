package load_test

import (
	"context"
	"testing"
	"time"

	"orch/test/cluster"
	"orch/test/load"
)

// newCluster gives the test three servers and two agents.
func newCluster(t *testing.T) *load.Cluster {
	t.Helper()
	network := cluster.StartNetwork(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := load.NewCluster(ctx, network, "")
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
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMachinesDie asks a service without pause while each server and then an
// agent lose their power. Only requests to the dead agent's pods may fail, and
// those only until the pods' endpoints are gone.
func TestMachinesDie(t *testing.T) {
	c := newCluster(t)
	asking, err := load.Start(t.Context(), c.Servers[0], c.Agents[0], 20, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	deaths, err := asking.Kill(t.Context(), c.Servers, c.Agents[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range deaths.Servers {
		t.Logf("server %s (led: %v): writes after %s, unlisted after %s, %d of %d API requests failed", s.Name, s.Led, s.Writes, s.Unlisted, s.APIFailed, s.APIRequests)
		for _, f := range s.Failed {
			t.Errorf("while server %s was dead: %+v", s.Name, f)
		}
	}
	a := deaths.Agent
	t.Logf("agent: %d pods died, endpoints gone after %s, pods elsewhere after %s, %d requests failed before", a.Pods, a.Removed, a.Elsewhere, len(a.Before))
	t.Logf("%d requests, p50 %s, p99 %s", deaths.Service.Requests, deaths.Service.P50, deaths.Service.P99)
	if a.Pods == 0 {
		t.Error("no pod died with the agent")
	}
	for _, f := range a.After {
		t.Errorf("after the endpoints were gone: %+v", f)
	}
}
