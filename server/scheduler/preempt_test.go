package scheduler

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func startedAt(at int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) { t := metav1.Unix(at, 0); p.Status.StartTime = &t }
}

func never(p *corev1.Pod) { policy := corev1.PreemptNever; p.Spec.PreemptionPolicy = &policy }

// beingPreempted is how a victim looks until it has ended.
func beingPreempted(p *corev1.Pod) {
	now := metav1.Now()
	p.DeletionTimestamp = &now
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler}}
}

func budget(name, app string, allowed int32) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	b.Status.DisruptionsAllowed = allowed
	return b
}

// Which pods have to go for one of priority 10 that wants a whole CPU of two.
func TestVictims(t *testing.T) {
	tests := []struct {
		name    string
		nodes   []*corev1.Node
		placed  []*corev1.Pod
		budgets []*policyv1.PodDisruptionBudget
		change  func(*corev1.Pod)
		want    string // victims, as they are deleted
	}{
		{name: "equals and betters stay", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "1", on("a"), priority(10)), makePod("y", "1", on("a"), priority(11)))},
		{name: "no more than needed", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "1", on("a"), priority(1)), makePod("y", "1", on("a"), priority(2))), want: "x"},
		{name: "the younger of equals", nodes: nodes(makeNode("a")), want: "y",
			placed: pods(makePod("x", "1", on("a"), priority(1), startedAt(1)), makePod("y", "1", on("a"), priority(1), startedAt(2)))},
		{name: "the node whose best victim is least", nodes: nodes(makeNode("a"), makeNode("b")), want: "y",
			placed: pods(makePod("x", "1500m", on("a"), priority(5)), makePod("y", "1500m", on("b"), priority(4)))},
		{name: "the node with fewer victims", nodes: nodes(makeNode("a"), makeNode("b")), want: "y",
			placed: pods(makePod("x", "1", on("a"), priority(5)), makePod("x2", "600m", on("a"), priority(5)), makePod("y", "1500m", on("b"), priority(5)), makePod("x3", "400m", on("a"), priority(5))),
			change: func(p *corev1.Pod) { requests(corev1.ResourceCPU, "1500m")(p) }},
		{name: "the node whose victim started last", nodes: nodes(makeNode("a"), makeNode("b")), want: "y",
			placed: pods(makePod("x", "1500m", on("a"), priority(5), startedAt(1)), makePod("y", "1500m", on("b"), priority(5), startedAt(2)))},
		{name: "the node without a budget", nodes: nodes(makeNode("a"), makeNode("b")), want: "y", budgets: []*policyv1.PodDisruptionBudget{budget("b", "db", 0)},
			placed: pods(makePod("x", "1500m", on("a"), priority(1), labelled("app", "db")), makePod("y", "1500m", on("b"), priority(5)))},
		{name: "a budget that allows it", nodes: nodes(makeNode("a"), makeNode("b")), want: "x", budgets: []*policyv1.PodDisruptionBudget{budget("b", "db", 1)},
			placed: pods(makePod("x", "1500m", on("a"), priority(1), labelled("app", "db")), makePod("y", "1500m", on("b"), priority(5)))},
		{name: "a budget is broken when nothing else helps", nodes: nodes(makeNode("a")), want: "x", budgets: []*policyv1.PodDisruptionBudget{budget("b", "db", 0)},
			placed: pods(makePod("x", "1500m", on("a"), priority(1), labelled("app", "db")))},
		{name: "one that leaves already is not deleted again", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "1500m", on("a"), priority(1), beingPreempted))},
		{name: "never", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "1500m", on("a"), priority(1))), change: never},
		{name: "host port", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "", on("a"), priority(1), hostPortOf(80, "")), makePod("y", "", on("a"), priority(1))),
			change: func(p *corev1.Pod) { hostPortOf(80, "")(p) }, want: "x"},
		{name: "anti-affinity", nodes: nodes(makeNode("a")), placed: pods(makePod("x", "", on("a"), priority(1)), makePod("y", "", on("a"), priority(1), labelled("app", "b"))),
			change: func(p *corev1.Pod) { antiAffinity(corev1.LabelHostname)(p) }, want: "x"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.door.budgets = test.budgets
			for _, n := range test.nodes {
				h.nodeChanged(n, false)
			}
			for _, p := range test.placed {
				h.podChanged(p, false)
			}
			p := makePod("p", "1", priority(10))
			if test.change != nil {
				test.change(p)
			}
			h.podChanged(p, false)
			h.run(t)
			if got := strings.Join(h.door.preempted, ","); got != test.want {
				t.Errorf("preempted %q, want %q (%s)", got, test.want, h.door.messages["p"])
			}
			for _, o := range test.placed {
				if _, ok := h.cluster.placed[o.UID]; !ok {
					t.Errorf("%s is no longer in the picture", o.Name)
				}
			}
		})
	}
}

func TestPreemptionIsExplained(t *testing.T) {
	play(t, []situation{
		{"policy", nodes(makeNode("a")), pods(makePod("x", "1500m", on("a"), priority(1))), makePod("p", "1", priority(10), never), "",
			"0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."},
		{"not even without victims", nodes(makeNode("a")), pods(makePod("x", "100m", on("a"), priority(1)), makePod("y", "1900m", on("a"), priority(20))), makePod("p", "1", priority(10)), "",
			"0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu."},
		{"victims are leaving", nodes(makeNode("a")), pods(makePod("x", "1500m", on("a"), priority(1), beingPreempted)),
			makePod("p", "1", priority(10), nominatedTo("a")), "",
			"0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the nominated node. [nominated a]"},
	})
}

func nominatedTo(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.NominatedNodeName = node }
}

// A preemptor keeps what was promised to it until its victims are gone, also
// under a scheduler that did not see the promise being made.
func TestNominationIsKept(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a"), false)
	h.podChanged(makePod("x", "1500m", on("a"), priority(1), beingPreempted), false)
	h.podChanged(makePod("p", "1", priority(10), nominatedTo("a")), false)
	for range 3 { // whatever happens meanwhile
		h.run(t)
		h.time = h.time.Add(maxBackoff)
		h.queue.happened(anything, h.time)
	}
	if got := h.door.messages["p"]; !strings.HasSuffix(got, "[nominated a]") {
		t.Fatalf("the nomination is lost: %s", got)
	}
	h.podChanged(makePod("x", "1500m", on("a")), true)
	h.podChanged(makePod("thief", "1500m", priority(2)), false)
	h.run(t)
	if h.door.bound["p"] != "a" || h.door.bound["thief"] != "" {
		t.Errorf("bound: %v", h.door.bound)
	}
}

// A node that is cordoned after the nomination frees the pod to look elsewhere.
func TestNominatedNodeLost(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a", cordoned), false)
	h.nodeChanged(makeNode("b"), false)
	h.podChanged(makePod("x", "1500m", on("a"), priority(1), beingPreempted), false)
	h.podChanged(makePod("y", "1500m", on("b"), priority(1)), false)
	h.podChanged(makePod("p", "1", priority(10), nominatedTo("a")), false)
	h.run(t)
	if got := strings.Join(h.door.preempted, ","); got != "y" {
		t.Errorf("preempted %q, want y on the other node", got)
	}
}

// A pod must fit with those that were promised room on the node, and without.
func TestNominatedPodsCount(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a", label(zone, "1")), false)
	h.podChanged(makePod("x", "1500m", on("a"), priority(1), beingPreempted, labelled("app", "x")), false)
	h.podChanged(makePod("first", "1500m", priority(10), nominatedTo("a"), antiAffinity(zone), labelled("app", "b")), false)
	h.podChanged(makePod("p", "100m", priority(5)), false)
	h.run(t)
	if got := h.door.bound["p"]; got != "" {
		t.Error("the promised pod's anti-affinity was not heeded")
	}
	h.podChanged(makePod("q", "100m", priority(5), labelled("app", "q"), nearTo("b")), false)
	h.run(t)
	if got := h.door.bound["q"]; got != "" {
		t.Error("affinity was satisfied by a pod that has not come yet")
	}
}

func nearTo(app string) func(*corev1.Pod) {
	return near(zone, func(t *corev1.PodAffinityTerm) {
		t.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	})
}
