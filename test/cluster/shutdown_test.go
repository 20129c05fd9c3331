package cluster_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tidy takes its time to end, and writes down that it did.
const tidy = `
apiVersion: v1
kind: Pod
metadata: {name: tidy}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: test.local/busybox:1
    command: [/bin/sh, -c, "trap 'sleep 1; echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"]
`

// A machine that goes down ends its pods in order and says so: the node is not
// Ready, the pods are Failed, nothing runs any more. An ordinary stop leaves
// them alone.
func TestNodeShutdown(t *testing.T) {
	server, agent := two(t)
	must(t, agent.ImportBusybox())
	agent.Args = append(agent.Args, "--shutdown-grace-period", "25s", "--shutdown-grace-period-critical-pods", "5s")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+agent.Dir+"/none") // this machine's logind is left alone
	must(t, agent.Stop())
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	if out, err := server.KubectlInput(t.Context(), strings.NewReader(fmt.Sprintf(tidy, agent.Name)), "apply", "-f", "-"); err != nil {
		t.Fatal(out)
	}
	kubectl(t, server, "wait", "--for=condition=Ready", "pod/tidy", "--timeout=120s")
	eventually(t, func() error {
		if out := kubectl(t, server, "logs", "tidy"); out != "up" {
			return fmt.Errorf("the pod says %q", out)
		}
		return nil
	})
	before, err := agent.Processes()
	must(t, err)
	must(t, agent.Stop())
	if after, err := agent.Processes(); err != nil || len(after) < len(before) {
		t.Errorf("processes of pods before and after a stop: %v %v (%v)", before, after, err)
	}
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))

	must(t, syscall.Kill(agent.PID(), syscall.SIGPWR))
	select {
	case <-agent.Exited():
	case <-time.After(patience):
		t.Fatal("orch goes on")
	}
	if agent.ExitCode() != 0 {
		t.Errorf("exit code %d", agent.ExitCode())
	}
	want := `Failed Terminated Pod was terminated in response to imminent node shutdown. TerminationByKubelet 0`
	if out := kubectl(t, server, "get", "pod", "tidy", "-o", `jsonpath={.status.phase} {.status.reason} {.status.message} {.status.conditions[?(@.type=="DisruptionTarget")].reason} {.status.containerStatuses[0].state.terminated.exitCode}`); out != want {
		t.Errorf("the pod is %s\nwant %s", out, want)
	}
	out := kubectl(t, server, "get", "node", agent.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")]['status','reason','message']}`)
	if out != "False KubeletNotReady node is shutting down" {
		t.Errorf("the node is %s", out)
	}
	if events := kubectl(t, server, "get", "events", "--field-selector", "reason=NodeShutdown", "-o", "jsonpath={.items[*].message}"); events != "Shutdown manager detected shutdown event" {
		t.Errorf("events: %s", events)
	}
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
}
