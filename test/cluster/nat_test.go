package cluster_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"orch/test/cluster"
)

// A server behind NAT is published under an address that it does not have itself.
// The cluster tells agents the one that it has, which they cannot reach: they keep
// to the one they joined by, for the API, for its links, and after a restart.
func TestServerBehindNAT(t *testing.T) {
	network := cluster.StartNetwork(t)
	server, err := network.NewNode()
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	remove, err := server.MoveBehindNAT()
	must(t, err)
	t.Cleanup(func() { must(t, remove()) })
	public, err := server.Publish(6443)
	must(t, err)
	server.Args = append(server.Args, "--tls-san", public)
	must(t, server.Start())
	must(t, server.WaitReady(t.Context()))

	agent, err := network.NewAgent(server)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the agent's log:\n%s", agent.LogTail())
		}
		must(t, agent.Close())
	})
	agent.Args[slices.Index(agent.Args, "--join")+1] = "https://" + public + ":6443"
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	kubectl(t, server, "run", "hello", "--image=orch.local/hello", `--overrides={"spec":{"nodeName":"`+agent.Name+`"}}`)
	kubectl(t, server, "wait", "--for=condition=Ready", "pod/hello", "--timeout=120s")
	linked := func() error {
		out, err := server.Kubectl(t.Context(), "get", "--raw", "/api/v1/nodes/"+agent.Name+"/proxy/healthz")
		if err != nil || out != "ok" {
			return fmt.Errorf("through the link: %v: %s", err, out)
		}
		return nil
	}
	learned := func() error {
		data, err := os.ReadFile(agent.DataDir() + "/agent/servers.json")
		if err == nil && !strings.Contains(string(data), server.IP) {
			err = fmt.Errorf("it holds %s", data)
		}
		return err
	}
	eventually(t, learned)
	eventually(t, linked)
	must(t, server.Restart())
	must(t, server.WaitReady(t.Context()))
	eventually(t, linked)
	must(t, agent.Restart())
	eventually(t, linked)
	must(t, agent.WaitReady(t.Context()))
}
