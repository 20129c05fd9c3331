package cluster_test

import (
	"fmt"
	"strings"
	"testing"

	"orch/test/cluster"
)

// inTime is what a busy machine, too, comes back in.
const inTime = `{"spec":{"template":{"spec":{"tolerations":[{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":600},
{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":600}]}}}}`

// A node that is cut off and comes back in time keeps its pods; nothing is
// restarted, and it is Ready again soon after the cut is healed.
func TestPartition(t *testing.T) {
	server, agent := two(t)
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello", "--replicas=2")
	kubectl(t, server, "patch", "deployment", "hello", "-p", inTime)
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")
	pods := func() string {
		return kubectl(t, server, "get", "pods", "-l", "app=hello", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID} {.metadata.deletionTimestamp},{end}")
	}
	var before string
	eventually(t, func() error { // those of before the patch are gone
		if before = pods(); strings.Count(before, ",") != 2 {
			return fmt.Errorf("the pods are %s", before)
		}
		return nil
	})
	for _, fault := range []struct {
		name      string
		cut, mend func() error
	}{
		{"both ways", func() error { return cluster.Partition([]*cluster.Node{server}, []*cluster.Node{agent}) }, func() error {
			if err := server.Heal(); err != nil {
				return err
			}
			return agent.Heal()
		}},
		{"the agent hears nothing", func() error { return agent.CutFrom(server) }, agent.Heal},
		{"no cable", agent.Isolate, agent.Heal},
		{"the agent is paused", agent.Pause, agent.Resume},
	} {
		t.Run(fault.name, func(t *testing.T) {
			must(t, fault.cut())
			eventually(t, func() error {
				if status := readyStatus(t, server, agent); status != "Unknown" {
					return fmt.Errorf("node is Ready=%s", status)
				}
				return nil
			})
			must(t, fault.mend())
			took := eventually(t, func() error {
				if status := readyStatus(t, server, agent); status != "True" {
					return fmt.Errorf("node is Ready=%s", status)
				}
				return nil
			})
			streams := eventually(t, func() error {
				out, err := server.Kubectl(t.Context(), "get", "--raw", "/api/v1/nodes/"+agent.Name+"/proxy/healthz")
				if err != nil {
					return fmt.Errorf("the link is not back: %s", out)
				}
				return nil
			})
			t.Logf("Ready %s after the cut was healed, streams after %s more", took, streams)
			eventually(t, func() error { // the pods are Ready again, too
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
