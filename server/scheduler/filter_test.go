package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What kube-scheduler appends when deleting pods would not help, or when there
// are none to delete.
const (
	one       = "0/1 nodes are available: "
	unhelpful = ". preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
	nobody    = ". preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
)

func taint(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }

func room(name corev1.ResourceName, amount string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.Allocatable[name] = resource.MustParse(amount) }
}

func requests(name corev1.ResourceName, amount string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		r := &p.Spec.Containers[0].Resources
		if r.Requests == nil {
			r.Requests = corev1.ResourceList{}
		}
		r.Requests[name] = resource.MustParse(amount)
	}
}

func tolerating(t corev1.Toleration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = append(p.Spec.Tolerations, t) }
}

func nodeTerm(terms ...corev1.NodeSelectorTerm) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
	}
}

func named(names ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: names}}}
}

func expression(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
}

// situation is a cluster, a pod called p, and what becomes of it.
type situation struct {
	name    string
	nodes   []*corev1.Node
	placed  []*corev1.Pod
	pod     *corev1.Pod
	want    string // node
	message string // or why not
}

func (s *situation) play(t *testing.T, h *harness) {
	t.Helper()
	for _, n := range s.nodes {
		h.nodeChanged(n, false)
	}
	for _, p := range s.placed {
		h.podChanged(p, false)
	}
	h.podChanged(s.pod, false)
	h.run(t)
	if got := h.door.bound["p"]; got != s.want {
		t.Errorf("bound to %q, want %q (%s)", got, s.want, h.door.messages["p"])
	}
	if got := h.door.messages["p"]; got != s.message {
		t.Errorf("message\n got %q\nwant %q", got, s.message)
	}
}

func play(t *testing.T, situations []situation) {
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) { s.play(t, newHarness(t)) })
	}
}

func nodes(n ...*corev1.Node) []*corev1.Node { return n }
func pods(p ...*corev1.Pod) []*corev1.Pod    { return p }

func TestTaints(t *testing.T) {
	tainted := nodes(makeNode("a", taint("k", "v", corev1.TaintEffectNoSchedule)))
	const refused = one + "1 node(s) had untolerated taint(s)" + unhelpful
	play(t, []situation{
		{"not tolerated", tainted, nil, makePod("p", ""), "", refused},
		{"tolerated by value", tainted, nil, makePod("p", "", tolerating(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpEqual, Value: "v"})), "a", ""},
		{"another value", tainted, nil, makePod("p", "", tolerating(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpEqual, Value: "w"})), "", refused},
		{"tolerated by key", tainted, nil, makePod("p", "", tolerating(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})), "a", ""},
		{"another effect", tainted, nil, makePod("p", "", tolerating(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})), "", refused},
		{"tolerates everything", tainted, nil, makePod("p", "", tolerating(corev1.Toleration{Operator: corev1.TolerationOpExists})), "a", ""},
		{"NoExecute keeps off too", nodes(makeNode("a", taint("k", "", corev1.TaintEffectNoExecute))), nil, makePod("p", ""), "", refused},
		{"a preference does not", nodes(makeNode("a", taint("k", "", corev1.TaintEffectPreferNoSchedule))), nil, makePod("p", ""), "a", ""},
		{"a preference counts among several", nodes(makeNode("a", taint("k", "", corev1.TaintEffectPreferNoSchedule)), makeNode("b")),
			pods(makePod("x", "500m", on("b"))), makePod("p", "100m"), "b", ""},
		{"cordoned", nodes(makeNode("a", cordoned)), nil, makePod("p", ""), "", one + "1 node(s) were unschedulable" + unhelpful},
		{"cordoned, tolerated", nodes(makeNode("a", cordoned)), nil,
			makePod("p", "", tolerating(corev1.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists})), "a", ""},
	})
}

func TestNodeAffinity(t *testing.T) {
	const refused = one + "1 node(s) didn't match Pod's node affinity/selector" + unhelpful
	ssd := nodes(makeNode("a", label("disk", "ssd"), label("cores", "8")))
	play(t, []situation{
		{"selector", ssd, nil, makePod("p", "", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }), "", refused},
		{"In", ssd, nil, makePod("p", "", nodeTerm(expression("disk", corev1.NodeSelectorOpIn, "hdd", "ssd"))), "a", ""},
		{"NotIn", ssd, nil, makePod("p", "", nodeTerm(expression("disk", corev1.NodeSelectorOpNotIn, "ssd"))), "", refused},
		{"Exists", ssd, nil, makePod("p", "", nodeTerm(expression("gpu", corev1.NodeSelectorOpExists))), "", refused},
		{"DoesNotExist", ssd, nil, makePod("p", "", nodeTerm(expression("gpu", corev1.NodeSelectorOpDoesNotExist))), "a", ""},
		{"Gt", ssd, nil, makePod("p", "", nodeTerm(expression("cores", corev1.NodeSelectorOpGt, "8"))), "", refused},
		{"Lt", ssd, nil, makePod("p", "", nodeTerm(expression("cores", corev1.NodeSelectorOpLt, "9"))), "a", ""},
		{"terms are alternatives", ssd, nil, makePod("p", "", nodeTerm(expression("gpu", corev1.NodeSelectorOpExists), expression("disk", corev1.NodeSelectorOpExists))), "a", ""},
		{"a term without requirements matches nothing", ssd, nil, makePod("p", "", nodeTerm(corev1.NodeSelectorTerm{})), "", refused},
		{"by name", nodes(makeNode("a"), makeNode("b")), nil, makePod("p", "", nodeTerm(named("b"))), "b", ""},
		{"by name, and that node is full", nodes(makeNode("a"), makeNode("b"), makeNode("c")), pods(makePod("x", "2", on("b"))), makePod("p", "1", nodeTerm(named("b"))), "",
			"0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]." +
				" preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."},
		{"by name or label", nodes(makeNode("a"), makeNode("b", label("disk", "ssd"))), nil,
			makePod("p", "", nodeTerm(named("none"), expression("disk", corev1.NodeSelectorOpExists))), "b", ""},
		{"preferred", nodes(makeNode("a"), makeNode("b", label("disk", "ssd"))), pods(makePod("x", "100m", on("b"))),
			makePod("p", "", func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{
					{Weight: 10, Preference: expression("disk", corev1.NodeSelectorOpExists)}}}}
			}), "b", ""},
	})
}

func TestResources(t *testing.T) {
	gpu := corev1.ResourceName("example.com/gpu")
	sidecar := corev1.ContainerRestartPolicyAlways
	initRequest := func(cpu string, policy *corev1.ContainerRestartPolicy) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", RestartPolicy: policy, Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}
		}
	}
	play(t, []situation{
		{"all that lacks is told", nodes(makeNode("a", room(corev1.ResourcePods, "1"))), pods(makePod("x", "2", on("a"), requests(corev1.ResourceMemory, "4Gi"))),
			makePod("p", "1", requests(corev1.ResourceMemory, "1Gi")), "", one + "1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods" + nobody},
		{"ephemeral storage", nodes(makeNode("a", room(corev1.ResourceEphemeralStorage, "1Gi"))), nil,
			makePod("p", "", requests(corev1.ResourceEphemeralStorage, "2Gi")), "", one + "1 Insufficient ephemeral-storage" + unhelpful},
		{"extended", nodes(makeNode("a", room(gpu, "1")), makeNode("b", room(gpu, "1"))), pods(makePod("x", "", on("a"), requests(gpu, "1"))),
			makePod("p", "", requests(gpu, "1")), "b", ""},
		{"extended, nowhere", nodes(makeNode("a")), nil, makePod("p", "", requests(gpu, "1")), "", one + "1 Insufficient example.com/gpu" + unhelpful},
		{"an init container counts alone", nodes(makeNode("a")), nil, makePod("p", "1500m", initRequest("2", nil)), "a", ""},
		{"a sidecar adds", nodes(makeNode("a")), nil, makePod("p", "1500m", initRequest("1", &sidecar)), "", one + "1 Insufficient cpu" + unhelpful},
		{"overhead adds", nodes(makeNode("a")), nil, makePod("p", "1500m", func(p *corev1.Pod) {
			p.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("600m")}
		}), "", one + "1 Insufficient cpu" + unhelpful},
		{"the pod's own request counts", nodes(makeNode("a")), nil, makePod("p", "100m", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3")}}
		}), "", one + "1 Insufficient cpu" + unhelpful},
		{"finished pods need nothing", nodes(makeNode("a")), pods(makePod("x", "2", on("a"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })),
			makePod("p", "2"), "a", ""},
	})
}

func TestHostPorts(t *testing.T) {
	taken := one + "1 node(s) didn't have free ports for the requested pod ports" + nobody
	udp := func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].Protocol = corev1.ProtocolUDP }
	play(t, []situation{
		{"any address takes all", nodes(makeNode("a")), pods(makePod("x", "", on("a"), hostPortOf(80, ""))), makePod("p", "", hostPortOf(80, "10.0.0.1")), "", taken},
		{"all want any address", nodes(makeNode("a")), pods(makePod("x", "", on("a"), hostPortOf(80, "10.0.0.1"))), makePod("p", "", hostPortOf(80, "0.0.0.0")), "", taken},
		{"another port", nodes(makeNode("a")), pods(makePod("x", "", on("a"), hostPortOf(80, ""))), makePod("p", "", hostPortOf(81, "")), "a", ""},
		{"another protocol", nodes(makeNode("a")), pods(makePod("x", "", on("a"), hostPortOf(80, ""))), makePod("p", "", hostPortOf(80, ""), udp), "a", ""},
	})
}

func TestClaims(t *testing.T) {
	claimed := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	}
	onlyB := func(n *corev1.Node) string {
		if n.Name != "b" {
			return volumeFar
		}
		return ""
	}
	tests := []struct {
		situation
		state ClaimState
	}{
		{situation{"unbound", nodes(makeNode("a")), nil, makePod("p", "", claimed), "", one + "pod has unbound immediate PersistentVolumeClaims" + unhelpful},
			ClaimState{Problem: "pod has unbound immediate PersistentVolumeClaims"}},
		{situation{"volume elsewhere", nodes(makeNode("a"), makeNode("b")), pods(makePod("x", "1", on("b"))), makePod("p", "", claimed), "b", ""}, ClaimState{Refuse: onlyB}},
		{situation{"volume nowhere", nodes(makeNode("a")), nil, makePod("p", "", claimed), "", one + "1 node(s) didn't match PersistentVolume's node affinity" + unhelpful},
			ClaimState{Refuse: onlyB}},
		{situation{"for one pod alone", nodes(makeNode("a")), pods(makePod("x", "", on("a"), claimed)), makePod("p", "", claimed), "",
			one + "1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod" + nobody},
			ClaimState{Exclusive: []string{"default/data"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.door.claims = map[string]ClaimState{"p": test.state}
			test.play(t, h)
		})
	}
}
