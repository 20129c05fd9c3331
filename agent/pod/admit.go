package pod

import (
	"cmp"
	"fmt"
	goruntime "runtime"
	"slices"

	corev1 "k8s.io/api/core/v1"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// refusal is why a pod may not run here: a reason and message for its status.
type refusal struct{ reason, message string }

// admit holds a new pod against this node and the pods that are here already.
func (w *worker) admit() {
	node := w.m.cfg.Node()
	if node == nil {
		return
	}
	r := fits(w.pod, node, w.m.others(w.uid))
	if r == nil {
		r = forbiddenSysctl(w.pod, w.m.cfg.UnsafeSysctls)
	}
	if reason, message := w.m.cfg.Refuse(); reason != "" {
		r = &refusal{reason, message}
	}
	if r != nil {
		w.event(nil, corev1.EventTypeWarning, r.reason, r.message)
		w.halt = &halt{reason: r.reason, message: "Pod was rejected: " + r.message, rejected: true}
	}
}

// others are the pods that take up room beside one, with their status as this
// node knows it.
func (m *Manager) others(uid podUID) []*corev1.Pod {
	var all []*corev1.Pod
	for _, s := range m.Pods() {
		if s.Pod != nil && s.Pod.UID != uid && !terminal(s.Status.Phase) {
			pod := *s.Pod // shallow: only its status is replaced
			pod.Status = s.Status
			all = append(all, &pod)
		}
	}
	return all
}

// fits checks what the scheduler has checked before, in case the pod was bound
// by someone else or the node has changed since. Nil means it fits.
func fits(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *refusal {
	if want, ok := pod.Labels[corev1.LabelOSStable]; ok && want != goruntime.GOOS {
		return &refusal{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != goruntime.GOOS {
		return &refusal{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if s := lack(pod, node, others); s != nil {
		return &refusal{"OutOf" + string(s.resource), s.String()}
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !ok || err != nil {
		return &refusal{"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	if port := portConflict(pod, others); port {
		return &refusal{"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return &refusal{"UnexpectedAdmissionError", "Allocate failed due to resource claims, which this node has no driver for, which is unexpected"}
	}
	for _, taint := range node.Spec.Taints {
		tolerated := slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(&t, &taint) })
		if taint.Effect == corev1.TaintEffectNoExecute && !tolerated {
			return &refusal{"TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"}
		}
	}
	return nil
}

func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	return t.Operator == corev1.TolerationOpExists || t.Value == taint.Value
}

// shortage is one resource that the node has too little of.
type shortage struct {
	resource          corev1.ResourceName
	want, used, total int64
}

func (s *shortage) String() string {
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.resource, s.want, s.used, s.total)
}

// lack gives the first resource, by name, that is too short for a pod.
func lack(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *shortage {
	free := node.Status.Allocatable
	if most := free.Pods().Value(); most > 0 && int64(len(others)) >= most {
		return &shortage{corev1.ResourcePods, 1, int64(len(others)), most}
	}
	requests := podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	names := make([]corev1.ResourceName, 0, len(requests))
	for name := range requests {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b corev1.ResourceName) int { return cmp.Compare(a, b) })
	for _, name := range names {
		have, known := free[name]
		if !known {
			continue // cluster-level resources are not the node's business
		}
		amount := func(l corev1.ResourceList) int64 {
			q := l[name]
			if name == corev1.ResourceCPU {
				return q.MilliValue()
			}
			return q.Value()
		}
		used := int64(0)
		for _, o := range others {
			used += amount(podresource.PodRequests(o, podresource.PodResourcesOptions{UseStatusResources: true}))
		}
		want, total := amount(requests), have.Value()
		if name == corev1.ResourceCPU {
			total = have.MilliValue()
		}
		if want > 0 && want > total-used {
			return &shortage{name, want, used, total}
		}
	}
	return nil
}

// portConflict tells that a host port is taken by another pod.
func portConflict(pod *corev1.Pod, others []*corev1.Pod) bool {
	type port struct {
		number   int32
		protocol corev1.Protocol
	}
	taken := make(map[port][]string)
	each := func(p *corev1.Pod, f func(port, string) bool) bool {
		for _, u := range units(p) {
			for _, cp := range u.Ports {
				if cp.HostPort != 0 && u.class != ephemeral && f(port{cp.HostPort, cp.Protocol}, cmp.Or(cp.HostIP, "0.0.0.0")) {
					return true
				}
			}
		}
		return false
	}
	for _, o := range others {
		each(o, func(p port, ip string) bool { taken[p] = append(taken[p], ip); return false })
	}
	return each(pod, func(p port, ip string) bool {
		return slices.ContainsFunc(taken[p], func(other string) bool {
			return ip == other || ip == "0.0.0.0" || other == "0.0.0.0"
		})
	})
}
