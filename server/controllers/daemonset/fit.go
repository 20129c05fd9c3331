package daemonset

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"orch/server/controllers/children"
)

// fit tells which nodes a set's pods may run on.
type fit struct {
	nodeName    string // the template's own, rarely set
	affinity    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
}

func fitOf(ds *appsv1.DaemonSet) fit {
	spec := &ds.Spec.Template.Spec
	return fit{
		nodeName:    spec.NodeName,
		affinity:    nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: *spec}),
		tolerations: tolerationsOf(spec),
	}
}

// node tells whether a pod should be on n, and whether one that is there may
// stay: a NoSchedule taint keeps new pods away but drives none out.
func (f fit) node(n *corev1.Node) (should, may bool) {
	if f.nodeName != "" && f.nodeName != n.Name {
		return false, false
	}
	if ok, err := f.affinity.Match(n); err != nil || !ok {
		return false, false
	}
	repelled := func(effects ...corev1.TaintEffect) bool {
		_, untolerated := scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, n.Spec.Taints, f.tolerations, func(t *corev1.Taint) bool {
			for _, e := range effects {
				if t.Effect == e {
					return true
				}
			}
			return false
		}, false)
		return untolerated
	}
	if repelled(corev1.TaintEffectNoExecute) {
		return false, false
	}
	return !repelled(corev1.TaintEffectNoSchedule), true
}

// tolerationsOf gives the template's tolerations with those that every daemon
// has: it stays on a node that is not well.
func tolerationsOf(spec *corev1.PodSpec) []corev1.Toleration {
	daemon := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
	}
	if spec.HostNetwork {
		daemon = append(daemon, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	}
	out := append([]corev1.Toleration(nil), spec.Tolerations...)
	for _, t := range daemon {
		t.Operator = corev1.TolerationOpExists
		replaced := false
		for i := range out {
			if out[i].MatchToleration(&t) {
				out[i], replaced = t, true
			}
		}
		if !replaced {
			out = append(out, t)
		}
	}
	return out
}

// podFor makes the set's pod for one node, to which the scheduler will bind it.
func podFor(ds *appsv1.DaemonSet, hash, node string) *corev1.Pod {
	pod := children.FromTemplate(&ds.Spec.Template, ds, kind)
	pod.Labels = maps.Clone(pod.Labels)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	if generation, ok := ds.Annotations[appsv1.DeprecatedTemplateGeneration]; ok {
		pod.Labels["pod-template-generation"] = generation
	}
	pod.Spec.Tolerations = tolerationsOf(&pod.Spec)
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.NodeAffinity == nil {
		pod.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// The template's own requirement has had its say in choosing the node.
	pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
		}}}},
	}
	return pod
}

// nodeOf is the node that a pod is on or meant for, "" when it is for none.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}
