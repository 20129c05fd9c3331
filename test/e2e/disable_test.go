package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// disabled are all sets of parts to leave out: none, each alone, and each pair.
func disabled() [][]string {
	parts := []string{"scheduler", "controllers", "proxy", "dns", "agent"}
	sets := [][]string{nil}
	for i, first := range parts {
		sets = append(sets, []string{first})
		for _, second := range parts[i+1:] {
			sets = append(sets, []string{first, second})
		}
	}
	// What is no part yet is accepted, for scripts name it.
	return append(sets, []string{"servicelb", "network-policy", "metrics", "local-storage", "admission-webhooks"})
}

// TestDisable starts one server again and again, each time without other parts: it
// runs a workload with services and host ports, survives a crash, does what the
// parts that are there do, and nothing of what the others would.
func TestDisable(t *testing.T) {
	t.Parallel()
	node := unstarted(t)
	args := node.Args
	for i, without := range disabled() {
		name := strings.Join(without, "+")
		node.Args = args
		if len(without) > 0 {
			node.Args = append(slices.Clone(args), "--disable", strings.Join(without, ","))
		}
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
		p := &parts{T: t, node: node, name: name, without: without, pod: fmt.Sprintf("p%d", i), hostPort: 20000 + i}
		p.waitUp()
		p.workload()
		p.check()
		if err := node.Restart(); err != nil {
			t.Fatal(err)
		}
		p.waitUp()
		p.check()
		if err := node.Stop(); err != nil {
			t.Fatal(err)
		}
		if code := node.ExitCode(); code != 0 {
			t.Errorf("without %s: exit code %d\n%s", name, code, node.LogTail())
		}
		if t.Failed() {
			return // the log is of this set
		}
	}
}

// parts is one set in its turn.
type parts struct {
	*testing.T
	node    *cluster.Node
	name    string
	without []string
	pod     string // name of this turn's objects

	hostPort int
}

func (p *parts) has(part string) bool { return !slices.Contains(p.without, part) }

// eventually waits until what kubectl or a command prints is as it should be.
func (p *parts) eventually(what string, ok func(ctx context.Context) (string, bool)) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
	defer cancel()
	for {
		out, done := ok(ctx)
		if done {
			return
		}
		select {
		case <-p.node.Exited():
			p.Fatalf("without %s: orch ended with %d while waiting for %s:\n%s", p.name, p.node.ExitCode(), what, p.node.LogTail())
		case <-ctx.Done():
			p.Fatalf("without %s: no %s: %s", p.name, what, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *parts) waitUp() {
	p.Helper()
	p.eventually("ready server", func(ctx context.Context) (string, bool) {
		out, err := p.node.Kubectl(ctx, "get", "--raw", "/readyz")
		return out, err == nil
	})
	p.eventually("default service account", func(ctx context.Context) (string, bool) { // of the first turn, with all parts
		out, err := p.node.Kubectl(ctx, "get", "serviceaccount", "default")
		return out, err == nil
	})
	if p.has("agent") {
		ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
		defer cancel()
		if err := p.node.WaitReady(ctx); err != nil {
			p.Fatalf("without %s: %v", p.name, err)
		}
	}
}

// workload is a pod that is bound to the node already and has a host port and a
// service, one that waits for the scheduler, and a deployment.
func (p *parts) workload() {
	p.Helper()
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  containers: [{name: c, image: orch.local/hello, ports: [{containerPort: 8080, hostPort: %[3]d}]}]
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s-waits}
spec: {containers: [{name: c, image: orch.local/hello}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: d%[1]s}}
  template: {metadata: {labels: {app: d%[1]s}}, spec: {containers: [{name: c, image: orch.local/hello}]}}
`, p.pod, p.node.Name, p.hostPort)
	if out, err := p.node.KubectlInput(p.Context(), strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		p.Fatalf("without %s: %v %s", p.name, err, out)
	}
	if p.has("agent") {
		if out, err := p.node.Kubectl(p.Context(), "wait", "--for=condition=Ready", "pod/"+p.pod, "--timeout=60s"); err != nil {
			p.Fatalf("without %s: %v %s", p.name, err, out)
		}
	}
}

// sign is how to see a part at work.
type sign struct {
	part string
	see  func(ctx context.Context) (out string, seen bool)
}

func (p *parts) signs() []sign {
	kubectl := func(args ...string) func(context.Context) (string, bool) {
		return func(ctx context.Context) (string, bool) {
			out, err := p.node.Kubectl(ctx, args...)
			return out, err == nil && out != ""
		}
	}
	onNode := func(want string, args ...string) func(context.Context) (string, bool) {
		return func(ctx context.Context) (string, bool) {
			out, err := p.node.Exec(ctx, args...)
			return out, err == nil && strings.Contains(out, want)
		}
	}
	signs := []sign{
		{"scheduler", kubectl("get", "pod", p.pod+"-waits", "-o", "jsonpath={.spec.nodeName}")},
		{"controllers", kubectl("get", "deployment", p.pod, "-o", "jsonpath={.status.observedGeneration}")},
	}
	if !p.has("agent") {
		return signs[1:] // a node that is away takes no pods
	}
	if p.has("controllers") { // those of the EndpointSlice
		signs = append(signs, sign{"proxy", onNode("default/"+p.pod, "iptables-save", "-t", "nat")})
	}
	return append(signs, sign{"dns", onNode(":53", "ss", "-Hlun")})
}

// check waits for the signs of the parts that are there, and then finds none of the
// others.
func (p *parts) check() {
	p.Helper()
	if p.has("agent") {
		p.eventually("answer at the host port", func(ctx context.Context) (string, bool) {
			conn, err := p.node.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", p.node.IP, p.hostPort))
			if err != nil {
				return err.Error(), false
			}
			return "", conn.Close() == nil
		})
	}
	for _, s := range p.signs() {
		if p.has(s.part) {
			p.eventually("sign of "+s.part, s.see)
		}
	}
	for _, s := range p.signs() {
		if p.has(s.part) {
			continue
		}
		if out, seen := s.see(p.Context()); seen {
			p.Errorf("without %s: %s is at work: %s", p.name, s.part, out)
		}
	}
}
