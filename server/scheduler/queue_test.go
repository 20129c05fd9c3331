package scheduler

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestQueueOrder(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	for i, p := range pods(makePod("old", ""), makePod("young", ""), makePod("urgent", "", priority(1))) {
		q.add(newPod(p), now.Add(time.Duration(i)*time.Second))
	}
	for _, want := range []string{"urgent", "old", "young"} {
		if got := q.pop(now.Add(time.Minute)); got == nil || got.pod.Name != want {
			t.Errorf("next is %v, want %s", got, want)
		}
	}
}

// 1 s, doubled with each attempt, 10 s at most.
func TestBackoff(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	q.add(newPod(makePod("p", "")), now)
	for _, want := range []int{1, 2, 4, 8, 10, 10} {
		w := q.pop(now)
		if w == nil {
			t.Fatalf("not ready before the back-off of %d s", want)
		}
		q.refuse(w, podGone, now)
		if _, ok := q.wake(); ok {
			t.Fatal("a refused pod wakes by itself")
		}
		q.happened(podGone, now)
		if at, ok := q.wake(); !ok || at.Sub(now) != time.Duration(want)*time.Second {
			t.Errorf("back-off of %v, want %d s", at.Sub(now), want)
		}
		if q.pop(now.Add(time.Duration(want)*time.Second-time.Millisecond)) != nil {
			t.Fatal("tried before the back-off was over")
		}
		now = now.Add(time.Duration(want) * time.Second)
	}
}

func TestRemovedWhileWaiting(t *testing.T) {
	now := time.Unix(1000, 0)
	states := map[string]func(*queue, *waiting){
		"tried":   func(*queue, *waiting) {},
		"refused": func(q *queue, w *waiting) { q.refuse(w, podGone, now) },
		"backoff": func(q *queue, w *waiting) { q.retry(w, now) },
	}
	for name, state := range states {
		q := newQueue()
		q.add(newPod(makePod("p", "")), now)
		w := q.pop(now)
		state(q, w)
		q.remove("p")
		q.refuse(w, anything, now) // the outcome of a try that was under way
		q.happened(anything, now)
		if got := q.pop(now.Add(time.Hour)); got != nil || len(q.pods)+len(q.refused)+len(q.backoff)+len(q.active) != 0 {
			t.Errorf("%s: something is left", name)
		}
	}
}

// Which change lets which refused pod try again.
func TestWakes(t *testing.T) {
	shrunk := makePod("x", "500m", on("a"))
	gates := func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}}
	}
	tests := []struct {
		name   string
		node   func(*corev1.Node)
		pod    *corev1.Pod
		change func(*harness)
	}{
		{"a pod went", nil, makePod("p", "1"), func(h *harness) { h.podChanged(makePod("x", "2", on("a")), true) }},
		{"a pod finished", nil, makePod("p", "1"), func(h *harness) {
			h.podChanged(makePod("x", "2", on("a"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), false)
		}},
		{"a pod was resized", nil, makePod("p", "1"), func(h *harness) { h.podChanged(shrunk, false) }},
		{"the node grew", nil, makePod("p", "1"), func(h *harness) { h.nodeChanged(makeNode("a", room(corev1.ResourceCPU, "4")), false) }},
		{"a node came", nil, makePod("p", "1"), func(h *harness) { h.nodeChanged(makeNode("b"), false) }},
		{"a taint went", taint("k", "", corev1.TaintEffectNoSchedule), makePod("p", ""), func(h *harness) { h.nodeChanged(makeNode("a"), false) }},
		{"uncordoned", cordoned, makePod("p", ""), func(h *harness) { h.nodeChanged(makeNode("a"), false) }},
		{"relabelled", nil, makePod("p", "", nodeTerm(expression("disk", corev1.NodeSelectorOpExists))),
			func(h *harness) { h.nodeChanged(makeNode("a", label("disk", "")), false) }},
		{"somebody to be near to came", nil, makePod("p", "", nearTo("db")), func(h *harness) {
			h.nodeChanged(makeNode("a", label(zone, "1")), false)
			h.podChanged(makePod("db", "", on("a"), labelled("app", "db")), false)
		}},
		{"the pod tolerates more", taint("k", "", corev1.TaintEffectNoSchedule), makePod("p", ""), func(h *harness) {
			p := makePod("p", "", tolerating(corev1.Toleration{Operator: corev1.TolerationOpExists}))
			p.Generation = 2
			h.podChanged(p, false)
		}},
		{"the last gate went", nil, makePod("p", "", gates, func(p *corev1.Pod) { p.Spec.NodeSelector = nil }), func(h *harness) {
			h.podChanged(makePod("p", ""), false)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			n := makeNode("a")
			if test.node != nil {
				test.node(n)
			}
			h.nodeChanged(n, false)
			h.podChanged(makePod("x", "2", on("a")), false)
			h.podChanged(test.pod, false)
			h.run(t)
			if got := h.door.bound["p"]; got != "" {
				t.Fatalf("bound to %s at once", got)
			}
			h.time = h.time.Add(maxBackoff)
			test.change(h)
			h.run(t)
			if h.door.bound["p"] == "" {
				t.Errorf("still refused: %s", h.door.messages["p"])
			}
		})
	}
}

// A node object that was deleted and registers anew still has its pods.
func TestNodeReturns(t *testing.T) {
	h := newHarness(t)
	h.podChanged(makePod("x", "1500m", on("a")), false) // before its node is known
	h.nodeChanged(makeNode("a"), false)
	check := func(when string) {
		t.Helper()
		if got := h.cluster.byName["a"].requested; got.cpu != 1500 || got.pods != 1 {
			t.Errorf("%s: %d millicores of %d pods are counted, want 1500 of 1", when, got.cpu, got.pods)
		}
	}
	check("pod first")
	h.nodeChanged(makeNode("a"), true)
	h.nodeChanged(makeNode("a"), false)
	check("node deleted and back")
	h.nodeChanged(makeNode("a"), true)
	h.podChanged(makePod("x", "1500m", on("a")), true)
	h.nodeChanged(makeNode("a"), false)
	if got := h.cluster.byName["a"].requested; got.cpu != 0 || len(h.cluster.homeless) != 0 {
		t.Errorf("a pod that went with its node is still counted: %v", got)
	}
}

func TestOtherSchedulersPods(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a"), false)
	h.podChanged(makePod("p", "", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }), false)
	h.podChanged(makePod("q", "", func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }), false)
	h.run(t)
	if len(h.door.bound) != 0 {
		t.Errorf("bound %v", h.door.bound)
	}
}
