package kinds

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validatePodUpdate lets little of a pod's spec change.
func validatePodUpdate(p, old *corev1.Pod) field.ErrorList {
	var f faults
	spec := field.NewPath("spec")
	for name, lists := range map[string][2][]corev1.Container{
		"containers":     {p.Spec.Containers, old.Spec.Containers},
		"initContainers": {p.Spec.InitContainers, old.Spec.InitContainers},
	} {
		if len(lists[0]) != len(lists[1]) {
			f.forbidden(spec.Child(name), "pod updates may not add or remove containers")
			return f.list
		}
	}
	f.shorterDeadline(spec.Child("activeDeadlineSeconds"), p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds)
	f.addedTolerations(spec.Child("tolerations"), p.Spec.Tolerations, old.Spec.Tolerations)
	f.removedGates(spec.Child("schedulingGates"), p.Spec.SchedulingGates, old.Spec.SchedulingGates)
	if len(f.list) > 0 || sameValue(p.Spec, old.Spec) {
		return f.list
	}
	rest := unchangeable(&p.Spec, &old.Spec)
	if len(old.Spec.SchedulingGates) > 0 {
		f.gatedPlacement(spec, rest, &old.Spec)
	}
	if !sameValue(*rest, old.Spec) {
		f.forbidden(spec, "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"+
			"`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"+
			"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"+diff.Diff(old.Spec, *rest))
	}
	return f.list
}

// unchangeable is spec with the fields that may change put back to old's.
func unchangeable(spec, old *corev1.PodSpec) *corev1.PodSpec {
	rest := *spec
	rest.Containers, rest.InitContainers = slices.Clone(spec.Containers), slices.Clone(spec.InitContainers)
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.ActiveDeadlineSeconds
	rest.SchedulingGates, rest.Tolerations = old.SchedulingGates, old.Tolerations
	if derefOr(old.TerminationGracePeriodSeconds, 0) < 0 && derefOr(spec.TerminationGracePeriodSeconds, 0) == 1 {
		rest.TerminationGracePeriodSeconds = old.TerminationGracePeriodSeconds
	}
	return &rest
}

func (f *faults) shorterDeadline(at *field.Path, now, old *int64) {
	switch {
	case now == nil && old != nil:
		f.invalid(at, now, "must not update from a positive integer to nil value")
	case now == nil:
	case *now < 0 || *now > math.MaxInt32:
		f.invalid(at, *now, validation.InclusiveRangeError(0, math.MaxInt32))
	case old != nil && *old < *now:
		f.invalid(at, *now, "must be less than or equal to previous value")
	}
}

func (f *faults) addedTolerations(at *field.Path, now, old []corev1.Toleration) {
	kept := make(map[corev1.Toleration]bool, len(now)) // whatever their seconds
	for _, t := range now {
		t.TolerationSeconds = nil
		kept[t] = true
	}
	for _, t := range old {
		if t.TolerationSeconds = nil; !kept[t] {
			f.forbidden(at, "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
}

func (f *faults) removedGates(at *field.Path, now, old []corev1.PodSchedulingGate) {
	had := sets.New(old...)
	for i, gate := range now {
		if !had.Has(gate) {
			f.forbidden(at.Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", gate.Name))
		}
	}
}

// gatedPlacement lets a pod that is not yet to be scheduled be placed more
// narrowly (KEP-3838), and puts what may change back to old's.
func (f *faults) gatedPlacement(at *field.Path, spec, old *corev1.PodSpec) {
	for key, value := range old.NodeSelector {
		if now, ok := spec.NodeSelector[key]; !ok || now != value {
			f.invalid(at.Child("nodeSelector"), spec.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
			break
		}
	}
	spec.NodeSelector = old.NodeSelector
	now, was := nodeAffinityOf(spec), nodeAffinityOf(old)
	if sameValue(now, was) {
		return
	}
	f.narrowerAffinity(at.Child("affinity", "nodeAffinity"), now, was)
	switch {
	case spec.Affinity == nil:
		spec.Affinity = &corev1.Affinity{NodeAffinity: was}
	case old.Affinity == nil && spec.Affinity.PodAffinity == nil && spec.Affinity.PodAntiAffinity == nil:
		spec.Affinity = nil
	default:
		affinity := *spec.Affinity
		affinity.NodeAffinity = was
		spec.Affinity = &affinity
	}
}

func nodeAffinityOf(s *corev1.PodSpec) *corev1.NodeAffinity {
	if s.Affinity == nil {
		return nil
	}
	return s.Affinity.NodeAffinity
}

func (f *faults) narrowerAffinity(at *field.Path, now, old *corev1.NodeAffinity) {
	if old == nil || old.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	path := at.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	oldTerms := old.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	var terms []corev1.NodeSelectorTerm
	if now != nil && now.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = now.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	if len(terms) != len(oldTerms) {
		f.invalid(path, terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	for i := range oldTerms {
		if len(oldTerms[i].MatchExpressions) == 0 && len(oldTerms[i].MatchFields) == 0 && len(terms[i].MatchExpressions)+len(terms[i].MatchFields) > 0 ||
			!extends(terms[i].MatchExpressions, oldTerms[i].MatchExpressions) || !extends(terms[i].MatchFields, oldTerms[i].MatchFields) {
			f.invalid(path.Index(i), terms[i], "only additions are allowed (no mutations or deletions)")
		}
	}
}

func extends(now, old []corev1.NodeSelectorRequirement) bool {
	return len(now) >= len(old) && (len(old) == 0 || sameValue(now[:len(old)], old))
}

func validateEphemeralContainersUpdate(p, old *corev1.Pod) field.ErrorList {
	f := faults{list: validatePod(p)}
	if _, ok := old.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	at := field.NewPath("spec", "ephemeralContainers")
	index := make(map[string]int, len(p.Spec.EphemeralContainers))
	for i := range p.Spec.EphemeralContainers {
		index[p.Spec.EphemeralContainers[i].Name] = i
	}
	for _, was := range old.Spec.EphemeralContainers {
		i, found := index[was.Name]
		if !found {
			f.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name))
		} else if now := p.Spec.EphemeralContainers[i]; !sameValue(now, was) {
			f.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, diff.Diff(was, now)))
		}
	}
	return f.list
}

// validatePodResize lets CPU and memory change and nothing else (KEP-1287).
func validatePodResize(p, old *corev1.Pod) field.ErrorList {
	f := faults{list: validatePod(p)}
	spec := field.NewPath("spec")
	if _, ok := old.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if class := old.Status.QOSClass; class != "" && qosClass(p) != class {
		f.invalid(spec, p.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	for _, c := range old.Status.ContainerStatuses {
		if c.State.Running != nil {
			if c.Resources == nil {
				f.forbidden(spec, "Pod running on node without support for resize")
			}
			break
		}
	}
	ordered := f.sameOrder(spec.Child("containers"), "containers", p.Spec.Containers, old.Spec.Containers)
	if !f.sameOrder(spec.Child("initContainers"), "initContainers", p.Spec.InitContainers, old.Spec.InitContainers) || !ordered {
		return f.list
	}
	f.resized(spec, spec.Child("containers"), p.Spec.Containers, old.Spec.Containers)
	f.resized(spec, spec.Child("initContainers"), p.Spec.InitContainers, old.Spec.InitContainers)
	return f.list
}

func (f *faults) sameOrder(at *field.Path, name string, now, old []corev1.Container) bool {
	if len(now) != len(old) {
		f.forbidden(at, name+" may not be added or removed on resize")
		return false
	}
	same := true
	for i := range now {
		if now[i].Name != old[i].Name {
			f.forbidden(at.Index(i).Child("name"), name+" may not be renamed or reordered on resize")
			same = false
		}
	}
	return same
}

func (f *faults) resized(spec, at *field.Path, now, old []corev1.Container) {
	for i := range old {
		path := at.Index(i).Child("resources")
		if lacks(now[i].Resources.Requests, old[i].Resources.Requests) {
			f.forbidden(path.Child("requests"), "resource requests cannot be removed")
		}
		if lacks(now[i].Resources.Limits, old[i].Resources.Limits) {
			f.forbidden(path.Child("limits"), "resource limits cannot be removed")
		}
		if !sameValue(beyondCompute(now[i].Resources.Limits), beyondCompute(old[i].Resources.Limits)) ||
			!sameValue(beyondCompute(now[i].Resources.Requests), beyondCompute(old[i].Resources.Requests)) ||
			!sameValue(now[i].Resources.Claims, old[i].Resources.Claims) || !sameValue(now[i].ResizePolicy, old[i].ResizePolicy) {
			f.forbidden(spec, "only cpu and memory resources are mutable")
		}
	}
}

func lacks(now, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := now[name]; !ok {
			return true
		}
	}
	return false
}

// beyondCompute is list without CPU and memory.
func beyondCompute(list corev1.ResourceList) corev1.ResourceList {
	rest := corev1.ResourceList{}
	for name, q := range list {
		if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
			rest[name] = q
		}
	}
	return rest
}

func validatePodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	var f faults
	at := field.NewPath("status")
	for i, c := range p.Status.Conditions {
		if c.ObservedGeneration < 0 {
			f.invalid(at.Child("conditions").Index(i).Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer")
		}
		f.invalids(at.Child("conditions").Index(i).Child("Type"), string(c.Type), validation.IsQualifiedName(string(c.Type)))
	}
	if n := p.Status.NominatedNodeName; n != "" && n != old.Status.NominatedNodeName {
		f.invalids(at.Child("nominatedNodeName"), n, subdomainName(n))
		if old.Spec.NodeName != "" {
			f.forbidden(at.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node")
		}
	}
	if p.Status.ObservedGeneration < 0 {
		f.invalid(at.Child("observedGeneration"), p.Status.ObservedGeneration, "must be a non-negative integer")
	}
	immutable(&f, at.Child("qosClass"), p.Status.QOSClass, old.Status.QOSClass)
	f.noResurrection(at.Child("containerStatuses"), p.Status.ContainerStatuses, old.Status.ContainerStatuses, &old.Spec, old.Spec.Containers)
	f.noResurrection(at.Child("initContainerStatuses"), p.Status.InitContainerStatuses, old.Status.InitContainerStatuses, &old.Spec, old.Spec.InitContainers)
	f.noResurrection(at.Child("ephemeralContainerStatuses"), p.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, nil, nil)
	f.podAddresses(at, p)
	return f.list
}

// noResurrection: a container that has ended for good does not come back.
func (f *faults) noResurrection(at *field.Path, now, old []corev1.ContainerStatus, spec *corev1.PodSpec, containers []corev1.Container) {
	alive := sets.New[string]()
	for i := range now {
		if now[i].State.Terminated == nil {
			alive.Insert(now[i].Name)
		}
	}
	byName := make(map[string]*corev1.Container, len(containers))
	for i := range containers {
		byName[containers[i].Name] = &containers[i]
	}
	for i := range old {
		ended := old[i].State.Terminated
		if ended == nil || spec != nil && mayRestart(spec, byName[old[i].Name], ended.ExitCode) {
			continue
		}
		if alive.Has(old[i].Name) {
			f.forbidden(at.Index(i).Child("state"), "may not be transitioned to non-terminated state")
		}
	}
}

// mayRestart takes nil for a container that the spec does not have.
func mayRestart(spec *corev1.PodSpec, c *corev1.Container, exitCode int32) bool {
	policy := spec.RestartPolicy
	if c != nil && len(c.RestartPolicyRules) > 0 {
		return true
	}
	if c != nil && c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && exitCode != 0
}

func (f *faults) podAddresses(at *field.Path, p *corev1.Pod) {
	for i, ip := range p.Status.PodIPs {
		f.ip(at.Child("podIPs").Index(i), ip.IP)
	}
	if ips := p.Status.PodIPs; len(ips) > 2 || len(ips) == 2 && strings.Contains(ips[0].IP, ":") == strings.Contains(ips[1].IP, ":") {
		f.invalid(at.Child("podIPs"), ips, "may specify no more than one IP for each IP family")
	}
	if len(p.Status.HostIPs) > 0 && p.Status.HostIP != p.Status.HostIPs[0].IP {
		f.invalid(at.Child("hostIPs").Index(0).Child("ip"), p.Status.HostIPs[0].IP, "must be equal to `hostIP`")
	}
	for i, ip := range p.Status.HostIPs {
		f.ip(at.Child("hostIPs").Index(i), ip.IP)
	}
}
