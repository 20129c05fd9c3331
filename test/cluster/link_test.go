package cluster_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"orch/test/cluster"
)

// talker writes a line a second and serves its node's name.
const talker = `
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: talker
    image: test.local/busybox:1
    stdin: true
    command: [/bin/sh, -c, "mkdir /www; echo hello > /www/index.html; httpd -p 8080 -h /www; echo up; exec cat"]
    ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: talker}
spec: {selector: {app: talker}, ports: [{port: 80, targetPort: 8080}]}
`

// An agent behind NAT, which nobody can connect to, is as useful from each of
// the servers as any other: all they want of it goes through the links that it
// opened itself.
func TestLinkFromEveryServer(t *testing.T) {
	first := cluster.Start(t)
	kubectl(t, first, "cordon", first.Name)
	second, err := first.Network().NewServer(first, "--disable-agent")
	must(t, err)
	t.Cleanup(func() {
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, second.Start())
	agent := newAgent(t, first)
	remove, err := agent.MoveBehindNAT()
	must(t, err)
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := first.Dial(ctx, "tcp", agent.IP+":1"); errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal("the agent can be reached, so this test shows nothing")
	}
	must(t, agent.ImportBusybox())
	if out, err := first.KubectlInput(t.Context(), strings.NewReader(talker), "apply", "-f", "-"); err != nil {
		t.Fatal(out)
	}
	kubectl(t, first, "wait", "--for=condition=Ready", "pod/talker", "--timeout=120s")
	for _, server := range []*cluster.Node{first, second} {
		t.Run(server.Name, func(t *testing.T) { useLink(t, server, agent) })
	}
}

// useLink does through the server whatever wants the agent.
func useLink(t *testing.T, server, agent *cluster.Node) {
	// The second server hears of the agent, and the agent of it, by a watch.
	eventually(t, func() error {
		out, err := server.Kubectl(t.Context(), "logs", "talker")
		if err != nil || !strings.Contains(out, "up") {
			return fmt.Errorf("logs: %v: %s", err, out)
		}
		return nil
	})
	if out := kubectl(t, server, "exec", "talker", "--", "echo", "by exec"); out != "by exec" {
		t.Errorf("exec prints %q", out)
	}
	attach(t, server)
	for path, want := range map[string]string{
		"/api/v1/nodes/" + agent.Name + "/proxy/metrics/resource":   "container_memory_working_set_bytes",
		"/api/v1/nodes/" + agent.Name + "/proxy/stats/summary":      `"nodeName"`,
		"/api/v1/namespaces/default/pods/talker:8080/proxy/":        "hello",
		"/api/v1/namespaces/default/services/talker:80/proxy/":      "hello",
		"/api/v1/namespaces/default/pods/talker/log?tailLines=1000": "up",
		"/api/v1/nodes/" + agent.Name + ":10250/proxy/healthz":      "ok",
	} {
		if out := kubectl(t, server, "get", "--raw", path); !strings.Contains(out, want) {
			t.Errorf("%s answers %q", path, out)
		}
	}
	forwardPort(t, server)
}

// attach says a line to the container, which says it back.
func attach(t *testing.T, server *cluster.Node) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := server.Command(ctx, server.Orch, "kubectl", "--kubeconfig", server.Kubeconfig, "attach", "-i", "--quiet", "talker")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.WriteString(stdin, "by attach\n")
	must(t, err)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "by attach\n" {
		t.Errorf("attach prints %q, %v", line, err)
	}
	must(t, stdin.Close()) // the runtime ends the stream then
	must(t, cmd.Wait())
}

// forwardPort fetches a page by kubectl port-forward.
func forwardPort(t *testing.T, server *cluster.Node) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := server.Command(ctx, server.Orch, "kubectl", "--kubeconfig", server.Kubeconfig, "port-forward", "pod/talker", ":8080")
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		cancel()
		_ = cmd.Wait() // ended by us
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n') // Forwarding from 127.0.0.1:PORT -> 8080
	must(t, err)
	fields := strings.Fields(line)
	if len(fields) < 3 {
		t.Fatalf("port-forward says %q", line)
	}
	body, err := get(ctx, server, "http://"+fields[2])
	if err != nil || body != "hello" {
		t.Errorf("through port-forward: %q, %v", body, err)
	}
}
