package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const zone = corev1.LabelTopologyZone

func labelled(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels[key] = value }
}

func in(namespace string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Namespace = namespace } }

// near and apart are required terms that select app=a, changed as told.
func near(key string, change func(*corev1.PodAffinityTerm)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		term := podTerm(key)
		change(&term)
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}}
	}
}

func apart(key string, change func(*corev1.PodAffinityTerm)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		term := podTerm(key)
		change(&term)
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}}
	}
}

func preferring(near bool, key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		terms := []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: podTerm(key)}}
		p.Spec.Affinity = &corev1.Affinity{}
		if near {
			p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: terms}
		} else {
			p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: terms}
		}
	}
}

func TestPodAffinity(t *testing.T) {
	zones := nodes(makeNode("a", label(zone, "1")), makeNode("b", label(zone, "2")))
	both := func(why string) string {
		return "0/2 nodes are available: 2 " + why + ". preemption: 0/2 nodes are available: 2 "
	}
	const unhelpful = "Preemption is not helpful for scheduling."
	const nobody = "No preemption victims found for incoming pod."
	version := func(t *corev1.PodAffinityTerm) { t.MatchLabelKeys = []string{"version"} }
	otherVersion := func(t *corev1.PodAffinityTerm) { t.MismatchLabelKeys = []string{"version"} }
	namespaced := func(t *corev1.PodAffinityTerm) { t.Namespaces = []string{"other"} }
	teamRed := func(t *corev1.PodAffinityTerm) {
		t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}}
	}
	everywhere := func(t *corev1.PodAffinityTerm) { t.NamespaceSelector = &metav1.LabelSelector{} }
	situations := []situation{
		{"anti-affinity by zone", zones, pods(makePod("x", "", on("a"))), makePod("p", "", antiAffinity(zone)), "b", ""},
		{"anti-affinity, all taken", zones, pods(makePod("x", "", on("a")), makePod("y", "", on("b"))), makePod("p", "", antiAffinity(zone)), "",
			both("node(s) didn't match pod anti-affinity rules") + nobody},
		{"anti-affinity ignores nodes without the label", nodes(makeNode("a")), pods(makePod("x", "", on("a"))), makePod("p", "", antiAffinity(zone)), "a", ""},
		{"affinity needs the label", nodes(makeNode("a"), makeNode("b")), nil, makePod("p", "", affinity(zone)), "",
			both("node(s) didn't match pod affinity rules") + unhelpful},
		{"the first of its kind, others where it does not count", nodes(makeNode("a"), makeNode("b", label(zone, "1"))), pods(makePod("x", "", on("a"))),
			makePod("p", "", affinity(zone)), "b", ""},
		{"same version", zones, pods(makePod("x", "", on("a"), labelled("version", "1")), makePod("y", "1", on("b"), labelled("version", "2"))),
			makePod("p", "", labelled("version", "2"), near(zone, version)), "b", ""},
		{"only the same version keeps off", nodes(makeNode("a", label(zone, "1"))), pods(makePod("x", "", on("a"), labelled("version", "1"))),
			makePod("p", "", labelled("version", "2"), apart(zone, version)), "a", ""},
		{"another version keeps off", zones, pods(makePod("x", "", on("a"), labelled("version", "1"))),
			makePod("p", "", labelled("version", "2"), apart(zone, otherVersion)), "b", ""},
		{"another namespace is not meant", nodes(makeNode("a", label(zone, "1"))), pods(makePod("x", "", on("a"), in("other"))), makePod("p", "", antiAffinity(zone)), "a", ""},
		{"namespace by name", zones, pods(makePod("x", "", on("a"), in("other"))), makePod("p", "", apart(zone, namespaced)), "b", ""},
		{"namespace by label", zones, pods(makePod("x", "", on("a"), in("other")), makePod("y", "1", on("b"), in("third"))), makePod("p", "", apart(zone, teamRed)), "b", ""},
		{"all namespaces", zones, pods(makePod("x", "", on("a"), in("other")), makePod("y", "", on("b"), in("third"))), makePod("p", "", apart(zone, everywhere)), "",
			both("node(s) didn't match pod anti-affinity rules") + nobody},
		{"a placed pod's term by namespace label", zones, pods(makePod("x", "", on("a"), in("third"), apart(zone, teamRed))), makePod("p", "", in("other")), "b", ""},
		{"preferred near", zones, pods(makePod("x", "100m", on("b"))), makePod("p", "100m", preferring(true, zone)), "b", ""},
		{"preferred apart", zones, pods(makePod("x", "100m", on("b")), makePod("y", "500m", on("a"), labelled("app", "b"))), makePod("p", "100m", preferring(false, zone)), "a", ""},
		{"a placed pod's preference", zones, pods(makePod("x", "100m", on("b"), preferring(true, zone))), makePod("p", "100m"), "b", ""},
	}
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			h := newHarness(t)
			h.door.namespaces = map[string]labels.Set{"other": {"team": "red"}, "third": {"team": "blue"}}
			s.play(t, h)
		})
	}
}

// What was counted by a namespace's labels is counted anew when they change.
func TestNamespaceRelabelled(t *testing.T) {
	h := newHarness(t)
	h.door.namespaces = map[string]labels.Set{"other": {"team": "blue"}}
	h.nodeChanged(makeNode("a", label(zone, "1")), false)
	h.podChanged(makePod("x", "", on("a"), in("other")), false)
	red := func(t *corev1.PodAffinityTerm) {
		t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}}
		t.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}
	}
	h.podChanged(makePod("p", "", labelled("app", "b"), near(zone, red)), false)
	h.run(t)
	if got := h.door.bound["p"]; got != "" {
		t.Fatalf("bound to %s though nobody of that team is there", got)
	}
	h.door.namespaces["other"] = labels.Set{"team": "red"}
	h.time = h.time.Add(maxBackoff)
	h.namespaceChanged()
	h.run(t)
	if got := h.door.bound["p"]; got != "a" {
		t.Errorf("bound to %q after the namespace was relabelled (%s)", got, h.door.messages["p"])
	}
}
