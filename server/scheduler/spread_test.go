package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// spread adds a constraint on app=a with a skew of 1, changed as told.
func spread(key string, change func(*corev1.TopologySpreadConstraint)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.TopologySpreadConstraint{MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}
		if change != nil {
			change(&c)
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}

func TestTopologySpread(t *testing.T) {
	const skewed = "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints." +
		" preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
	honor, ignore := corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore
	three := int32(3)
	minDomains := func(c *corev1.TopologySpreadConstraint) { c.MinDomains = &three }
	version := func(c *corev1.TopologySpreadConstraint) { c.MatchLabelKeys = []string{"version"} }
	anyNode := func(c *corev1.TopologySpreadConstraint) { c.NodeAffinityPolicy = &ignore }
	noTainted := func(c *corev1.TopologySpreadConstraint) { c.NodeTaintsPolicy = &honor }
	softly := func(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway }
	zones := nodes(makeNode("a", label(zone, "1")), makeNode("b", label(zone, "2")))
	only := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{zone: "1"} }
	leaving := func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
	play(t, []situation{
		{"evens out", zones, pods(makePod("x", "", on("a"))), makePod("p", "", spread(zone, nil)), "b", ""},
		{"pods that leave do not count", zones, pods(makePod("x", "100m", on("b"), labelled("app", "b")), makePod("y", "", on("a"), leaving)), makePod("p", "100m", spread(zone, nil)), "a", ""},
		{"no label", nodes(makeNode("a")), nil, makePod("p", "", spread(zone, nil)), "",
			one + "1 node(s) didn't match pod topology spread constraints (missing required label)" + unhelpful},
		{"too few domains", zones, pods(makePod("x", "", on("a")), makePod("y", "", on("b"))), makePod("p", "", spread(zone, minDomains)), "", skewed},
		{"too few domains, but empty", zones, pods(makePod("x", "", on("a"))), makePod("p", "", spread(zone, minDomains)), "b", ""},
		{"by version", zones, pods(makePod("x", "", on("a"), labelled("version", "1")), makePod("y", "500m", on("b"), labelled("version", "2"))),
			makePod("p", "", labelled("version", "2"), spread(zone, version)), "a", ""},
		{"zones that the pod excludes do not count", zones, pods(makePod("x", "", on("a"))), makePod("p", "", only, spread(zone, nil)), "a", ""},
		{"unless asked to", zones, pods(makePod("x", "", on("a"))), makePod("p", "", only, spread(zone, anyNode)), "",
			"0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) didn't match pod topology spread constraints." +
				" preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."},
		{"tainted zones count", nodes(makeNode("a", label(zone, "1")), makeNode("b", label(zone, "2"), taint("k", "", corev1.TaintEffectNoSchedule))),
			pods(makePod("x", "", on("a"))), makePod("p", "", spread(zone, nil)), "",
			"0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) had untolerated taint(s)." +
				" preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."},
		{"unless asked not to", nodes(makeNode("a", label(zone, "1")), makeNode("b", label(zone, "2"), taint("k", "", corev1.TaintEffectNoSchedule))),
			pods(makePod("x", "", on("a"))), makePod("p", "", spread(zone, noTainted)), "a", ""},
		{"soft", zones, pods(makePod("x", "100m", on("a")), makePod("y", "500m", on("b"), labelled("app", "b"))), makePod("p", "100m", spread(zone, softly)), "b", ""},
		{"soft, impossible", nodes(makeNode("a")), nil, makePod("p", "", spread(zone, softly)), "a", ""},
		{"a skew of its own is no matter to others", zones, pods(makePod("x", "", on("a"))), makePod("p", "", labelled("app", "b"), spread(zone, nil)), "b", ""},
	})
}

// Pods of one service spread by host also where nodes have no zone.
func TestDefaultSpread(t *testing.T) {
	for _, zoned := range []bool{true, false} {
		h := newHarness(t)
		h.door.spread = labels.SelectorFromSet(labels.Set{"app": "a"})
		for i := range 3 {
			h.nodeChanged(makeNode(fmt.Sprint("n", i), func(n *corev1.Node) {
				if zoned {
					n.Labels[zone] = fmt.Sprint(i)
				}
			}), false)
		}
		// The two nodes that the service does not use are the busier ones.
		h.podChanged(makePod("x", "100m", on("n0")), false)
		h.podChanged(makePod("y", "700m", on("n1"), labelled("app", "b")), false)
		h.podChanged(makePod("z", "500m", on("n2"), labelled("app", "b")), false)
		h.podChanged(makePod("p", "100m"), false)
		h.run(t)
		if got := h.door.bound["p"]; got != "n2" {
			t.Errorf("zones %v: bound to %s, want the less busy node without a pod of the service", zoned, got)
		}
	}
}

// The last node of a domain that goes may even out what was skewed.
func TestSpreadWakesWhenADomainGoes(t *testing.T) {
	h := newHarness(t)
	h.nodeChanged(makeNode("a", label(zone, "1")), false)
	h.nodeChanged(makeNode("b", label(zone, "2"), cordoned), false)
	h.podChanged(makePod("x", "", on("a")), false)
	h.podChanged(makePod("p", "", spread(zone, nil)), false)
	h.run(t)
	if h.door.bound["p"] != "" {
		t.Fatal("a skew of 2 was allowed")
	}
	h.time = h.time.Add(maxBackoff)
	h.nodeChanged(makeNode("b"), true)
	h.run(t)
	if h.door.bound["p"] != "a" {
		t.Errorf("not tried again: %s", h.door.messages["p"])
	}
}

// What spreads over all nodes is summed up without looking at each; the sums are
// the same.
func TestSpreadOverAllNodes(t *testing.T) {
	h := newHarness(t)
	for i := range 6 {
		h.nodeChanged(makeNode(fmt.Sprint("n", i), label(zone, fmt.Sprint(i%4)), label("all", "")), false)
	}
	h.nodeChanged(makeNode("n5", label(zone, "4"), label("all", "")), false)
	h.nodeChanged(makeNode("n3"), true)
	for i, node := range []string{"n0", "n0", "n1", "n2", "n4", "n5"} {
		h.podChanged(makePod(fmt.Sprint("p", i), "", on(node)), false)
	}
	h.podChanged(makePod("p1", ""), true)
	h.podChanged(makePod("p2", "", on("n1"), labelled("app", "b")), false)
	for _, hard := range []bool{true, false} {
		for _, key := range []string{zone, corev1.LabelHostname} {
			how := func(c *corev1.TopologySpreadConstraint) {
				if !hard {
					c.WhenUnsatisfiable = corev1.ScheduleAnyway
				}
			}
			any, choosy := newPod(makePod("x", "", spread(key, how))), newPod(makePod("y", "", spread(key, how), func(p *corev1.Pod) {
				p.Spec.NodeSelector = map[string]string{"all": ""}
			}))
			summed, looked := h.cluster.spreadCount(any, &any.spread[0], any.spread, 1), h.cluster.spreadCount(choosy, &choosy.spread[0], choosy.spread, 1)
			if h.cluster.everyNodeCounts(choosy, &choosy.spread[0], choosy.spread) || !h.cluster.everyNodeCounts(any, &any.spread[0], any.spread) {
				t.Fatal("a way is not taken")
			}
			for value, count := range looked.byValue {
				if summed.byValue[value] != count {
					t.Errorf("%s %s: %d pods instead of %d", key, value, summed.byValue[value], count)
				}
			}
			if summed.domains != looked.domains || hard && summed.least != looked.least || summed.self != looked.self {
				t.Errorf("%s: %+v instead of %+v", key, summed, looked)
			}
		}
	}
}
