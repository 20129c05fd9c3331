package cluster_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"orch/test/cluster"
)

// two gives a test a server and an agent that joined it.
func two(t *testing.T) (server, agent *cluster.Node) {
	t.Helper()
	server = cluster.Start(t)
	return server, join(t, server)
}

// join adds an agent to the server's cluster.
func join(t *testing.T, server *cluster.Node, args ...string) *cluster.Node {
	t.Helper()
	agent := newAgent(t, server, args...)
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	return agent
}

func newAgent(t *testing.T, server *cluster.Node, args ...string) *cluster.Node {
	t.Helper()
	agent, err := server.Network().NewAgent(server, args...)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of %s's log:\n%s", agent.Name, agent.LogTail())
		}
		if err := agent.Close(); err != nil {
			t.Error(err)
		}
	})
	return agent
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kubectl runs kubectl, which must succeed.
func kubectl(t *testing.T, n *cluster.Node, args ...string) string {
	t.Helper()
	out, err := n.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// patience is what anything may take on a busy machine. How long things do take is
// the benchmarks' affair.
const patience = 2 * time.Minute

// eventually looks until ok gives no error, and tells how long that took.
func eventually(t *testing.T, ok func() error) time.Duration {
	t.Helper()
	start, tick := time.Now(), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return time.Since(start)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-tick.C:
		}
		if time.Since(start) > patience {
			t.Fatalf("not within %s: %v", patience, err)
		}
	}
}

// web is a server on every node, and services in front.
const web = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: test.local/busybox:1
        command: [/bin/sh, -c, "mkdir /www; echo $NODE > /www/index.html; exec httpd -f -p 8080 -h /www"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
`

// seen asks url several times and tells which nodes answered.
func seen(times int, get func() (string, error)) (string, error) {
	nodes := map[string]bool{}
	for range times {
		out, err := get()
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		nodes[out] = true
	}
	if len(nodes) == 2 && nodes["node1"] && nodes["node2"] {
		return "both", nil
	}
	return strings.Join(slices.Sorted(maps.Keys(nodes)), " and "), nil
}

// get fetches url as a program on the node does, over a connection of its own.
func get(ctx context.Context, n *cluster.Node, url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// Pods, services and the API's streams work between nodes.
func TestNetworkBetweenNodes(t *testing.T) {
	server, agent := two(t)
	nodes := []*cluster.Node{server, agent}
	for _, n := range nodes {
		must(t, n.ImportBusybox())
	}
	if out, err := server.KubectlInput(t.Context(), strings.NewReader(web), "apply", "-f", "-"); err != nil {
		t.Fatal(out)
	}
	kubectl(t, server, "rollout", "status", "ds/web", "--timeout=120s")
	pod, ip := map[string]string{}, map[string]string{}
	for _, n := range nodes {
		fields := strings.Fields(kubectl(t, server, "get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName="+n.Name, "-o", "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}"))
		pod[n.Name], ip[n.Name] = fields[0], fields[1]
	}
	clusterIP := kubectl(t, server, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	localIP := kubectl(t, server, "get", "service", "web-local", "-o", "jsonpath={.spec.clusterIP}")
	fromPod := func(node, host, port, path string) func() (string, error) {
		return func() (string, error) {
			ask := fmt.Sprintf("printf 'GET %s HTTP/1.0\\r\\n\\r\\n' | nc -w 5 %s %s | sed '1,/^.$/d'", path, host, port)
			return server.Kubectl(t.Context(), "exec", pod[node], "--", "sh", "-c", ask)
		}
	}
	fromHost := func(n *cluster.Node, url string) func() (string, error) {
		return func() (string, error) { return get(t.Context(), n, url) }
	}
	check := func(what, want string, get func() (string, error)) {
		t.Helper()
		eventually(t, func() error { // rules follow endpoints within milliseconds, not at once
			if got, err := seen(12, get); err != nil || got != want {
				return fmt.Errorf("%s: answered by %s (%v), want %s", what, got, err, want)
			}
			return nil
		})
	}
	for _, n := range nodes {
		other := server.Name
		if n == server {
			other = agent.Name
		}
		check(n.Name+"'s pod to the other pod", other, fromPod(n.Name, ip[other], "8080", "/"))
		check(n.Name+" to the other node's pod", other, fromHost(n, "http://"+ip[other]+":8080"))
		check(n.Name+"'s pod to the service", "both", fromPod(n.Name, clusterIP, "80", "/"))
		check(n.Name+" to the service", "both", fromHost(n, "http://"+clusterIP))
		check(n.Name+"'s pod to the service, local policy", n.Name, fromPod(n.Name, localIP, "80", "/"))
		check(n.Name+" to the service, local policy", n.Name, fromHost(n, "http://"+localIP))
		check("node port of "+n.Name, "both", fromHost(server, "http://"+n.IP+":30080"))
		if out := kubectl(t, server, "exec", pod[n.Name], "--", "nslookup", "web.default.svc.cluster.local"); !strings.Contains(out, clusterIP) {
			t.Errorf("%s's pod does not find the service by name: %s", n.Name, out)
		}
		if n != server { // from outside, that is from another machine
			check("node port of "+n.Name+", local policy", n.Name, fromHost(server, "http://"+n.IP+":30081"))
		}
	}
	if out := kubectl(t, server, "exec", pod[agent.Name], "--", "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x > /www/big; wc -c < /www/big"); out != "100000" {
		t.Errorf("exec gave %q", out)
	}
	if out, err := fromPod(server.Name, ip[agent.Name], "8080", "/big")(); err != nil || len(out) != 100000 {
		t.Errorf("large answers do not pass between nodes: %d bytes, %v", len(out), err)
	}
}

// otherServers gives the addresses of a server without TLS, and of one whose
// clock is a day ahead.
func otherServers(t *testing.T, n *cluster.Node) (plain, tomorrow string) {
	t.Helper()
	listen := func(serve func(*http.Server, net.Listener)) string {
		listener, err := n.Network().Listen(0)
		must(t, err)
		web := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(24*time.Hour).UTC().Format(http.TimeFormat))
		})}
		var serving sync.WaitGroup
		serving.Go(func() { serve(web, listener) })
		t.Cleanup(func() {
			_ = web.Close()
			serving.Wait()
		})
		return listener.Addr().String()
	}
	certificate := httptest.NewTLSServer(nil)
	certificate.Close()
	return listen(func(web *http.Server, l net.Listener) { _ = web.Serve(l) }), listen(func(web *http.Server, l net.Listener) {
		web.TLSConfig = certificate.TLS
		_ = web.ServeTLS(l, "", "")
	})
}

// A wrong way to join ends at once and says what to mend; a server that is not
// there yet is waited for.
func TestJoinErrors(t *testing.T) {
	server := cluster.Start(t)
	good, err := os.ReadFile(filepath.Join(server.DataDir(), "server", "agent-token"))
	must(t, err)
	token, url := strings.TrimSpace(string(good)), "https://"+server.IP+":6443"
	plain, tomorrow := otherServers(t, server)
	foreign := "K10" + strings.Repeat("ab", 32) + "::node:secret"
	for _, tt := range []struct {
		name, want string
		args       []string
	}{
		{"wrong secret", "the token's secret is wrong", []string{"--join", url, "--token", token + "x"}},
		{"another cluster's token", "is not the server that the token is for", []string{"--join", url, "--token", foreign}},
		{"no token form", "not a join token", []string{"--join", url, "--token", "K10::x"}},
		{"not TLS", "does not speak TLS", []string{"--join", "https://" + plain, "--token", token}},
		{"clock off by a day", "this machine's clock says", []string{"--join", "https://" + tomorrow, "--token", token}},
		{"no https", "must be of the form https://HOST:6443", []string{"--join", server.IP + ":6443", "--token", token}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newAgent(t, server, tt.args...)
			must(t, n.Start())
			select {
			case <-n.Exited():
			case <-time.After(patience):
				t.Fatal("the agent goes on")
			}
			if tail := n.LogTail(); n.ExitCode() != 1 || !strings.Contains(tail, tt.want) {
				t.Errorf("exit code %d, log:\n%s", n.ExitCode(), tail)
			}
		})
	}
	t.Run("server comes later", func(t *testing.T) {
		must(t, server.Kill())
		late := newAgent(t, server)
		must(t, late.Start())
		eventually(t, func() error {
			if !strings.Contains(late.LogTail(), "waiting for the server") {
				return fmt.Errorf("no line of progress: %s", late.LogTail())
			}
			return nil
		})
		must(t, server.Start())
		must(t, late.WaitReady(t.Context()))
	})
}

// A dead node's pods run elsewhere within a minute, and the node comes back.
func TestNodeFailure(t *testing.T) {
	server, agent := two(t)
	other := join(t, server)
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello", "--replicas=4")
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")

	must(t, agent.Kill())
	must(t, agent.KillPods())
	died := time.Now()
	took := eventually(t, func() error {
		if status := readyStatus(t, server, agent); status != "Unknown" {
			return fmt.Errorf("node is still Ready=%s", status)
		}
		return nil
	})
	t.Logf("NotReady after %s", took)
	eventually(t, func() error {
		out := kubectl(t, server, "get", "pods", "-l", "app=hello", "--field-selector", "status.phase=Running", "-o", "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.deletionTimestamp},{end}")
		if n := strings.Count(out, other.Name+" ,"); n != 4 {
			return fmt.Errorf("%d of 4 pods run elsewhere", n)
		}
		return nil
	})
	t.Logf("pods ran elsewhere after %s", time.Since(died))
	// Under a minute is what these 30 s make of it.
	for _, condition := range []string{"not-ready", "unreachable"} {
		path := `jsonpath={.items[*].spec.tolerations[?(@.key=="node.kubernetes.io/` + condition + `")].tolerationSeconds}`
		if out := kubectl(t, server, "get", "pods", "-l", "app=hello", "--field-selector", "spec.nodeName="+other.Name, "-o", path); out != "30 30 30 30" {
			t.Errorf("pods tolerate %s for %q seconds", condition, out)
		}
	}

	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	eventually(t, func() error {
		out := kubectl(t, server, "get", "node", agent.Name, "-o", "jsonpath={.spec.taints}")
		pods := kubectl(t, server, "get", "pods", "-l", "app=hello", "-o", "jsonpath={range .items[*]}{.spec.nodeName},{end}")
		if out != "" || strings.Contains(pods, agent.Name+",") {
			return fmt.Errorf("taints %s; pods on %s", out, pods)
		}
		return nil
	})
}

func readyStatus(t *testing.T, server, n *cluster.Node) string {
	t.Helper()
	return kubectl(t, server, "get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
}

// A deleted node stays away with its credentials revoked, and comes back with
// the token when it is started again.
func TestDeletedNode(t *testing.T) {
	server, agent := two(t)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello", "--replicas=4")
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")
	kubectl(t, server, "drain", agent.Name, "--ignore-daemonsets", "--timeout=120s")
	kubectl(t, server, "uncordon", agent.Name)
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "scale", "deployment", "hello", "--replicas=6") // two of them run here, undrained
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")
	kubectl(t, server, "delete", "node", agent.Name)
	eventually(t, func() error {
		if !strings.Contains(agent.LogTail(), "this node was deleted from the cluster") {
			return fmt.Errorf("the agent does not say that it is out")
		}
		return nil
	})
	eventually(t, func() error {
		if pids, err := agent.Processes(); err != nil || len(pids) > 0 {
			return fmt.Errorf("pods go on running: %v %v", pids, err)
		}
		return nil
	})
	if tail := agent.LogTail(); strings.Contains(tail, "cannot stop the pods") {
		t.Error("the pods were not stopped in order")
	}
	if out, err := server.Kubectl(t.Context(), "get", "node", agent.Name); err == nil {
		t.Errorf("the node is back: %s", out)
	}
	must(t, agent.Restart())
	must(t, agent.WaitReady(t.Context()))
}

// Pods run on while there is no server, and an agent that is started meanwhile
// takes them over.
func TestNoServer(t *testing.T) {
	server, agent := two(t)
	kubectl(t, server, "cordon", server.Name)
	kubectl(t, server, "create", "deployment", "hello", "--image=orch.local/hello")
	kubectl(t, server, "rollout", "status", "deployment/hello", "--timeout=120s")
	before := kubectl(t, server, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].containerID} {.items[*].status.podIP}")
	ip := before[strings.LastIndexByte(before, ' ')+1:]
	answers := func() error {
		_, err := get(t.Context(), agent, "http://"+ip+":8080")
		return err
	}
	eventually(t, answers)
	must(t, server.Kill())
	must(t, answers())
	must(t, agent.Restart())
	must(t, answers())
	must(t, server.Start())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, server.WaitReady(ctx))
	must(t, agent.WaitReady(ctx))
	must(t, answers())
	eventually(t, func() error {
		out, err := server.Kubectl(ctx, "get", "--raw", "/api/v1/nodes/"+agent.Name+"/proxy/healthz")
		if err != nil {
			return fmt.Errorf("the link is not back: %s", out)
		}
		return nil
	})
	after := kubectl(t, server, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].containerID} {.items[*].status.podIP}")
	if after != before {
		t.Errorf("the pod was %s and is %s", before, after)
	}
}
