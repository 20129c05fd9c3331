package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// recordingDoor is a cluster in memory that records what the scheduler does.
type recordingDoor struct {
	mu         sync.Mutex
	namespaces map[string]labels.Set
	budgets    []*policyv1.PodDisruptionBudget
	bound      map[string]string
	messages   map[string]string
	preempted  []string
	bindError  error
	claims     map[string]ClaimState // by pod
	spread     labels.Selector
}

func newRecordingDoor() *recordingDoor {
	return &recordingDoor{bound: map[string]string{}, messages: map[string]string{}}
}

func (d *recordingDoor) Watch(ctx context.Context, _ func(*corev1.Node, bool), _ func(*corev1.Pod, bool), _, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}
func (d *recordingDoor) NamespaceLabels(ns string) labels.Set       { return d.namespaces[ns] }
func (d *recordingDoor) Budgets() []*policyv1.PodDisruptionBudget   { return d.budgets }
func (d *recordingDoor) SpreadSelector(*corev1.Pod) labels.Selector { return d.spread }
func (d *recordingDoor) Claims(p *corev1.Pod) ClaimState            { return d.claims[p.Name] }
func (d *recordingDoor) Bind(_ context.Context, p *corev1.Pod, node string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bindError != nil {
		return d.bindError
	}
	d.bound[p.Name] = node
	return nil
}
func (d *recordingDoor) Unschedulable(_ context.Context, p *corev1.Pod, message, nominated string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.messages[p.Name] = message
	if nominated != "" {
		d.messages[p.Name] += " [nominated " + nominated + "]"
	}
	return nil
}
func (d *recordingDoor) Preempt(_ context.Context, victim, _ *corev1.Pod, _ string) error {
	d.preempted = append(d.preempted, victim.Name)
	return nil
}

// harness drives a scheduler step by step with a clock of its own.
type harness struct {
	*Scheduler
	door *recordingDoor
	time time.Time
}

func newHarness(t testing.TB) *harness {
	h := &harness{door: newRecordingDoor(), time: time.Unix(1_000_000, 0)}
	h.Scheduler = New(Config{Door: h.door, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Now: func() time.Time { return h.time }})
	return h
}

// run schedules all that is ready; binds happen at once.
func (h *harness) run(t testing.TB) {
	ctx := context.Background()
	for {
		for _, message := range h.inbox.take() {
			message()
		}
		w := h.queue.pop(h.time)
		if w == nil {
			return
		}
		h.schedule(ctx, w)
		for len(h.binds) > 0 {
			h.bind(ctx, <-h.binds)
		}
	}
}

func makeNode(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	n.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func label(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func makePod(name, cpu string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Labels: map[string]string{"app": "a"}}}
	p.Spec.SchedulerName = Name
	c := corev1.Container{Name: "c", Image: "image"}
	if cpu != "" {
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	p.Spec.Containers = []corev1.Container{c}
	for _, f := range change {
		f(p)
	}
	return p
}

func priority(v int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &v } }
func on(node string) func(*corev1.Pod)   { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func podTerm(key string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}
}

func antiAffinity(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{podTerm(key)}}}
	}
}

func affinity(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{podTerm(key)}}}
	}
}

func spreadOver(key string, skew int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: skew, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}},
		}}
	}
}

func hostPortOf(port int32, ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: port, HostIP: ip, Protocol: corev1.ProtocolTCP}}
	}
}

func TestSchedule(t *testing.T) {
	const noVictims = " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
	const notHelpful = " preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
	tests := []struct {
		name    string
		nodes   []*corev1.Node
		placed  []*corev1.Pod
		pod     *corev1.Pod
		want    string // node
		message string // or why not
	}{
		{"fits", []*corev1.Node{makeNode("a")}, nil, makePod("p", "1"), "a", ""},
		{"no nodes", nil, nil, makePod("p", "1"), "", "no nodes available to schedule pods"},
		{"more than the node", []*corev1.Node{makeNode("a")}, nil, makePod("p", "3"), "",
			"0/1 nodes are available: 1 Insufficient cpu." + notHelpful},
		{"node is full", []*corev1.Node{makeNode("a")}, []*corev1.Pod{makePod("x", "1500m", on("a"))}, makePod("p", "1"), "",
			"0/1 nodes are available: 1 Insufficient cpu." + noVictims},
		{"least allocated", []*corev1.Node{makeNode("a"), makeNode("b")}, []*corev1.Pod{makePod("x", "1", on("a"))}, makePod("p", "100m"), "b", ""},
		{"cordoned", []*corev1.Node{makeNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = true })}, nil, makePod("p", ""), "",
			"0/1 nodes are available: 1 node(s) were unschedulable." + notHelpful},
		{"tainted", []*corev1.Node{makeNode("a", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "k", Value: "v", Effect: corev1.TaintEffectNoSchedule}}
		})}, nil, makePod("p", ""), "", "0/1 nodes are available: 1 node(s) had untolerated taint(s)." + notHelpful},
		{"node selector", []*corev1.Node{makeNode("a"), makeNode("b", label("disk", "ssd"))}, nil,
			makePod("p", "", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), "b", ""},
		{"host port taken", []*corev1.Node{makeNode("a")}, []*corev1.Pod{makePod("x", "", on("a"), hostPortOf(80, ""))},
			makePod("p", "", hostPortOf(80, "10.0.0.1")), "",
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports." + noVictims},
		{"host port on another address", []*corev1.Node{makeNode("a")}, []*corev1.Pod{makePod("x", "", on("a"), hostPortOf(80, "10.0.0.2"))},
			makePod("p", "", hostPortOf(80, "10.0.0.1")), "a", ""},
		{"anti-affinity", []*corev1.Node{makeNode("a"), makeNode("b")}, []*corev1.Pod{makePod("x", "", on("a"))},
			makePod("p", "1900m", antiAffinity(corev1.LabelHostname)), "b", ""},
		{"another pod's anti-affinity", []*corev1.Node{makeNode("a")}, []*corev1.Pod{makePod("x", "", on("a"), antiAffinity(corev1.LabelHostname))},
			makePod("p", ""), "", "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules." + noVictims},
		{"affinity", []*corev1.Node{makeNode("a"), makeNode("b")}, []*corev1.Pod{makePod("x", "1", on("a"))},
			makePod("p", "", affinity(corev1.LabelHostname)), "a", ""},
		{"affinity with itself", []*corev1.Node{makeNode("a")}, nil, makePod("p", "", affinity(corev1.LabelHostname)), "a", ""},
		{"affinity with nobody", []*corev1.Node{makeNode("a")}, nil,
			makePod("p", "", affinity(corev1.LabelHostname), func(p *corev1.Pod) { p.Labels = nil }), "",
			"0/1 nodes are available: 1 node(s) didn't match pod affinity rules." + notHelpful},
		{"spread", []*corev1.Node{makeNode("a", label("zone", "1")), makeNode("b", label("zone", "2"))},
			[]*corev1.Pod{makePod("x", "", on("a"))}, makePod("p", "", spreadOver("zone", 1)), "b", ""},
		{"spread refused", []*corev1.Node{makeNode("a", label("zone", "1")), makeNode("b", label("zone", "2"), func(n *corev1.Node) { n.Spec.Unschedulable = true })},
			[]*corev1.Pod{makePod("x", "", on("a"))}, makePod("p", "", spreadOver("zone", 1)), "",
			"0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) were unschedulable." +
				" preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			for _, n := range test.nodes {
				h.nodeChanged(n, false)
			}
			for _, p := range test.placed {
				h.podChanged(p, false)
			}
			h.podChanged(test.pod, false)
			h.run(t)
			if got := h.door.bound["p"]; got != test.want {
				t.Errorf("bound to %q, want %q (%s)", got, test.want, h.door.messages["p"])
			}
			if got := h.door.messages["p"]; got != test.message {
				t.Errorf("message\n got %q\nwant %q", got, test.message)
			}
		})
	}
}

func TestPreemption(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a"), false)
	h.nodeChanged(makeNode("b"), false)
	h.podChanged(makePod("low", "1500m", on("a"), priority(1)), false)
	h.podChanged(makePod("mid", "1500m", on("b"), priority(5)), false)
	h.podChanged(makePod("p", "1", priority(10)), false)
	h.run(t)
	if got := strings.Join(h.door.preempted, ","); got != "low" {
		t.Fatalf("preempted %q, want the pod of least priority", got)
	}
	if got := h.door.messages["p"]; !strings.HasSuffix(got, "[nominated a]") {
		t.Errorf("message %q, want node a nominated", got)
	}
	// Another pod must not take the room that is being cleared.
	h.podChanged(makePod("low", "1500m", on("a"), priority(1)), true)
	h.podChanged(makePod("thief", "1500m", priority(2)), false)
	h.time = h.time.Add(2 * time.Second)
	h.run(t)
	if got := h.door.bound["p"]; got != "a" {
		t.Errorf("preemptor bound to %q, want a", got)
	}
	if got := h.door.bound["thief"]; got != "" {
		t.Errorf("a pod of lower priority took the nominated node %q", got)
	}
}

func TestRefusedPodsWakeOnWhatMatters(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a"), false)
	h.podChanged(makePod("x", "2", on("a")), false)
	h.podChanged(makePod("p", "1"), false)
	h.run(t)
	attempts := h.attempts
	h.time = h.time.Add(time.Minute)
	relabelled := makeNode("a", label("color", "blue"))
	h.nodeChanged(relabelled, false)
	h.run(t)
	if h.attempts != attempts {
		t.Error("a label change woke a pod that lacked CPU")
	}
	h.podChanged(makePod("x", "2", on("a")), true)
	h.run(t)
	if h.door.bound["p"] != "a" {
		t.Error("the pod was not tried again when room became free")
	}
}

func TestBindFailureIsTriedAgain(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a"), false)
	h.door.bindError = fmt.Errorf("no")
	h.podChanged(makePod("p", "2"), false)
	h.run(t)
	h.door.bindError = nil
	h.time = h.time.Add(2 * time.Second)
	h.run(t)
	if h.door.bound["p"] != "a" {
		t.Error("the pod was not bound after a failed bind")
	}
}

// The incremental sums must equal those counted afresh.
func TestCountersStayTrue(t *testing.T) {
	h := newHarness(t)
	for i := range 10 {
		h.nodeChanged(makeNode(fmt.Sprint("n", i), label("zone", fmt.Sprint(i%3))), false)
	}
	for i := range 60 {
		h.podChanged(makePod(fmt.Sprint("p", i), "100m", spreadOver("zone", 1), antiAffinity("none")), false)
		h.run(t)
		if i%7 == 3 {
			gone := makePod(fmt.Sprint("p", i-1), "100m")
			h.podChanged(gone, true)
		}
	}
	for _, c := range h.cluster.counters.byKey {
		fresh := &counter{selection: c.selection, perNode: map[*node]int{}}
		for _, n := range h.cluster.nodes {
			for _, p := range n.pods {
				if c.selection.matches(p.Pod, h.cluster.namespaceLabels) {
					fresh.add(n, 1)
				}
			}
		}
		if fmt.Sprint(fresh.byValue("zone")) != fmt.Sprint(c.byValue("zone")) || fresh.total != c.total {
			t.Errorf("counter %s: %v, counted afresh %v", c.selection.key, c.byValue("zone"), fresh.byValue("zone"))
		}
	}
	for _, n := range h.cluster.nodes {
		for _, p := range n.pods {
			if h.cluster.inhabited[p.Namespace][p] != n {
				t.Errorf("pod %s is not found by its namespace", p.Name)
			}
		}
	}
	if found, placed := len(h.cluster.inhabited["default"]), len(h.cluster.placed); found != placed {
		t.Errorf("%d pods are found by their namespace, %d are placed", found, placed)
	}
	zones := map[string]int{}
	for _, n := range h.door.bound {
		zones[h.cluster.byName[n].Labels["zone"]]++
	}
	if len(zones) != 3 {
		t.Errorf("pods lie in zones %v, want all three", zones)
	}
}

func BenchmarkSchedule(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		for _, kind := range []string{"plain", "spread"} {
			b.Run(fmt.Sprintf("%s/%d", kind, nodes), func(b *testing.B) {
				h := newHarness(b)
				for i := range nodes {
					h.nodeChanged(makeNode(fmt.Sprint("n", i), label(corev1.LabelTopologyZone, fmt.Sprint(i%10)), func(n *corev1.Node) {
						n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("100000")
					}), false)
				}
				i := 0
				for b.Loop() {
					change := func(*corev1.Pod) {}
					if kind == "spread" {
						change = spreadOver(corev1.LabelTopologyZone, 5)
					}
					h.podChanged(makePod(fmt.Sprint("p", i), "1m", change), false)
					h.run(b)
					i++
				}
				if len(h.door.bound) != i {
					b.Fatalf("bound %d of %d: %v", len(h.door.bound), i, h.door.messages)
				}
			})
		}
	}
}
