package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	scheduling "k8s.io/component-helpers/scheduling/corev1"
)

// refusal says why a pod cannot run on a node, in kube-scheduler's words.
type refusal struct {
	reasons      []string
	unresolvable bool // deleting other pods would not help
}

func refused(reasons ...string) *refusal      { return &refusal{reasons: reasons} }
func unresolvable(reasons ...string) *refusal { return &refusal{reasons: reasons, unresolvable: true} }

// attempt is one try to place one pod: the pod and what was computed for it
// once, before looking at single nodes.
type attempt struct {
	pod      *pod
	claims   ClaimState
	users    map[string]int // of volume claims: cluster.claimUsers
	affinity *affinityState
	spread   *spreadState
}

// filter is one check of a node. causes are the kinds of change that may turn
// a refusal around, so that only those wake the pod up.
type filter struct {
	name   string
	causes cause
	check  func(a *attempt, n *node) *refusal
}

// filters in kube-scheduler's order: the first refusal of a node counts.
func filters() []filter {
	return []filter{
		{"NodeUnschedulable", nodeTaint, nodeUnschedulable},
		{"NodeName", nodeAdded, nodeName},
		{"TaintToleration", nodeTaint, taintToleration},
		{"NodeAffinity", nodeLabel, nodeAffinity},
		{"NodePorts", podGone, nodePorts},
		{"NodeResourcesFit", podGone | nodeCapacity, nodeResourcesFit},
		{"VolumeRestrictions", podGone | claimChanged, volumeRestrictions},
		{"VolumeBinding", claimChanged | nodeLabel, volumeBinding},
		{"PodTopologySpread", podGone | podPlaced | nodeLabel | nodeTaint | nodeGone, func(a *attempt, n *node) *refusal { return a.spread.refuse(n) }},
		{"InterPodAffinity", podGone | podPlaced | nodeLabel | namespaceLabel, func(a *attempt, n *node) *refusal { return a.affinity.refuse(n) }},
	}
}

func (c *cluster) attempt(p *pod, defaults []constraint, number int) *attempt {
	constraints := p.spread
	if len(constraints) == 0 {
		constraints = defaults
	}
	return &attempt{pod: p, users: c.claimUsers, affinity: c.affinityOf(p, number), spread: c.spreadOf(p, constraints, number)}
}

var unschedulableTaint = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func nodeUnschedulable(a *attempt, n *node) *refusal {
	if n.unschedulable && !tolerates(a.pod, &unschedulableTaint) {
		return unresolvable("node(s) were unschedulable")
	}
	return nil
}

func nodeName(a *attempt, n *node) *refusal {
	if a.pod.Spec.NodeName != "" && a.pod.Spec.NodeName != n.Name {
		return unresolvable("node(s) didn't match the requested node name")
	}
	return nil
}

func taintToleration(a *attempt, n *node) *refusal {
	if untolerated(a.pod, n, repelling) {
		return unresolvable("node(s) had untolerated taint(s)")
	}
	return nil
}

// repelling are the taints that keep pods off a node.
func repelling(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}

func untolerated(p *pod, n *node, which func(*corev1.Taint) bool) bool {
	for i := range n.taints {
		if t := &n.taints[i]; which(t) && !tolerates(p, t) {
			return true
		}
	}
	return false
}

func tolerates(p *pod, t *corev1.Taint) bool {
	return scheduling.TolerationsTolerateTaint(klog.Logger{}, p.Spec.Tolerations, t, false)
}

func nodeAffinity(a *attempt, n *node) *refusal {
	if ok, err := a.pod.nodeMatch.Match(n.Node); !ok || err != nil {
		return unresolvable("node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

func volumeRestrictions(a *attempt, n *node) *refusal {
	for _, claim := range a.claims.Exclusive {
		if a.users[claim] > 0 {
			return refused("node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")
		}
	}
	return nil
}

func volumeBinding(a *attempt, n *node) *refusal {
	if a.claims.Refuse == nil {
		return nil
	}
	if reason := a.claims.Refuse(n.Node); reason != "" {
		return unresolvable(reason)
	}
	return nil
}

func nodePorts(a *attempt, n *node) *refusal {
	for _, want := range a.pod.ports {
		for have := range n.ports {
			if have.port == want.port && have.protocol == want.protocol &&
				(have.ip == want.ip || have.ip == "0.0.0.0" || want.ip == "0.0.0.0") {
				return refused("node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return nil
}

func nodeResourcesFit(a *attempt, n *node) *refusal {
	var reasons []string
	impossible := false // more than the whole node has
	lack := func(name string, request, used, allocatable int64) {
		if request > 0 && request > allocatable-used {
			reasons = append(reasons, "Insufficient "+name)
			impossible = impossible || request > allocatable
		}
	}
	if n.requested.pods+1 > n.allocatable.pods {
		reasons = append(reasons, "Too many pods")
		impossible = n.allocatable.pods == 0
	}
	r := &a.pod.requests
	lack("cpu", r.cpu, n.requested.cpu, n.allocatable.cpu)
	lack("memory", r.memory, n.requested.memory, n.allocatable.memory)
	lack("ephemeral-storage", r.ephemeral, n.requested.ephemeral, n.allocatable.ephemeral)
	if len(r.scalar) > 0 {
		for name, request := range r.scalar {
			lack(string(name), request, n.requested.scalar[name], n.allocatable.scalar[name])
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	slices.Sort(reasons)
	return &refusal{reasons: reasons, unresolvable: impossible}
}

// diagnosis gathers the refusals of all nodes for one pod.
type diagnosis struct {
	nodes    int
	refusals map[string]*refusal // by node name
	causes   cause
	before   string // a reason that holds whatever the node
}

// message is the text of the pod's condition and event.
func (d *diagnosis) message() string {
	if d.nodes == 0 {
		return "no nodes available to schedule pods"
	}
	text := fmt.Sprintf("0/%d nodes are available:", d.nodes)
	if d.before != "" {
		return text + " " + d.before + "."
	}
	if histogram := histogram(d.refusals); histogram != "" {
		return text + " " + histogram + "."
	}
	return text
}

// histogram counts equal reasons: "2 Insufficient cpu, 1 Too many pods".
func histogram(refusals map[string]*refusal) string {
	counts := map[string]int{}
	for _, r := range refusals {
		for _, reason := range r.reasons {
			counts[reason]++
		}
	}
	lines := make([]string, 0, len(counts))
	for reason, count := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", count, reason))
	}
	slices.Sort(lines)
	text := ""
	for i, line := range lines {
		if i > 0 {
			text += ", "
		}
		text += line
	}
	return text
}
