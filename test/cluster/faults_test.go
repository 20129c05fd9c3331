package cluster_test

import (
	"fmt"
	"testing"
	"time"

	"orch/test/cluster"
)

// A node that is cut off and comes back in time keeps its pods; nothing is
// restarted, and it is Ready again soon after the cut is healed.
func TestPartition(t *testing.T) {
	server, agent := two(t)
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello", "--replicas=2")
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=60s")
	pods := func() string {
		return kubectl(t, server, "get", "pods", "-l", "app=hello", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID} {.metadata.deletionTimestamp},{end}")
	}
	before := pods()
	for _, fault := range []struct {
		name      string
		cut, mend func() error
		soon      time.Duration // after mending
	}{
		{"both ways", func() error { return cluster.Partition([]*cluster.Node{server}, []*cluster.Node{agent}) }, func() error {
			if err := server.Heal(); err != nil {
				return err
			}
			return agent.Heal()
		}, 20 * time.Second},
		{"the agent hears nothing", func() error { return agent.CutFrom(server) }, agent.Heal, 20 * time.Second},
		{"no cable", agent.Isolate, agent.Heal, 20 * time.Second},
		{"the agent is paused", agent.Pause, agent.Resume, 20 * time.Second},
	} {
		t.Run(fault.name, func(t *testing.T) {
			must(t, fault.cut())
			eventually(t, 45*time.Second, func() error {
				if status := readyStatus(t, server, agent); status != "Unknown" {
					return fmt.Errorf("node is Ready=%s", status)
				}
				return nil
			})
			must(t, fault.mend())
			took := eventually(t, fault.soon, func() error {
				if status := readyStatus(t, server, agent); status != "True" {
					return fmt.Errorf("node is Ready=%s", status)
				}
				return nil
			})
			streams := eventually(t, fault.soon, func() error {
				out, err := server.Kubectl(t.Context(), "get", "--raw", "/api/v1/nodes/"+agent.Name+"/proxy/healthz")
				if err != nil {
					return fmt.Errorf("the link is not back: %s", out)
				}
				return nil
			})
			t.Logf("Ready %s after the cut was healed, streams after %s more", took, streams)
			eventually(t, 20*time.Second, func() error { // the pods are Ready again, too
				if out := kubectl(t, server, "get", "deployment", "hello", "-o", "jsonpath={.status.readyReplicas}"); out != "2" {
					return fmt.Errorf("%s pods are Ready", out)
				}
				return nil
			})
			if after := pods(); after != before {
				t.Errorf("the pods were %s and are %s", before, after)
			}
		})
	}
}
