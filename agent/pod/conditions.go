package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ours are the conditions that this node alone writes.
var ours = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady,
	corev1.PodScheduled, corev1.PodResizePending, corev1.PodResizeInProgress, corev1.AllContainersRestarting,
}

// conditions computes ours and keeps those of others.
func (a account) conditions(s *corev1.PodStatus) []corev1.PodCondition {
	pod := a.view.pod
	var all []corev1.PodCondition
	for _, c := range pod.Status.Conditions {
		if !slices.Contains(ours, c.Type) {
			all = append(all, c)
		}
	}
	if h := a.view.halt; h != nil && h.disruption != "" && terminal(s.Phase) {
		all = slices.DeleteFunc(all, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		all = append(all, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: h.disruption, Message: h.message,
		})
	}
	containers := a.containersReady(s)
	all = append(all, a.resize...)
	all = append(all,
		a.readyToStart(), a.initialized(s), ready(pod, containers, all), containers,
		corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
	if c, ok := a.restarting(); ok {
		all = append(all, c)
	}
	for i := range all {
		if slices.Contains(ours, all[i].Type) && all[i].ObservedGeneration == 0 {
			all[i].ObservedGeneration = pod.Generation
		}
		a.stamp(&all[i])
	}
	return all
}

// stamp keeps the transition time of a condition whose status has not changed.
func (a account) stamp(c *corev1.PodCondition) {
	for _, list := range [][]corev1.PodCondition{a.old.Conditions, a.view.pod.Status.Conditions} {
		for _, o := range list {
			if o.Type == c.Type && o.Status == c.Status {
				c.LastTransitionTime, c.LastProbeTime = o.LastTransitionTime, o.LastProbeTime
				return
			}
		}
	}
	if c.LastTransitionTime.IsZero() {
		c.LastTransitionTime = metav1.NewTime(a.view.now)
	}
}

func condition(kind corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message}
	if ok {
		c.Status = corev1.ConditionTrue
	}
	return c
}

// readyToStart is true while there is a sandbox with its network and all
// volumes are there.
func (a account) readyToStart() corev1.PodCondition {
	started := len(a.view.seen.alive()) > 0 // volumes prepared once
	return condition(corev1.PodReadyToStartContainers, a.view.seen.box() != nil && (a.view.volumes || started), "", "")
}

func (a account) initialized(s *corev1.PodStatus) corev1.PodCondition {
	pod := a.view.pod
	if s.InitContainerStatuses == nil && len(pod.Spec.InitContainers) > 0 {
		return condition(corev1.PodInitialized, false, "UnknownContainerStatuses", "")
	}
	if s.Phase == corev1.PodSucceeded {
		return condition(corev1.PodInitialized, true, "PodCompleted", "")
	}
	if count(pod, s).begun {
		return condition(corev1.PodInitialized, true, "", "")
	}
	var missing []string
	for i, u := range initUnits(pod) {
		cs := s.InitContainerStatuses[i]
		done := cs.Ready
		if u.class == sidecar {
			done = cs.Started != nil && *cs.Started
		}
		if !done {
			missing = append(missing, u.Name)
		}
	}
	if len(missing) == 0 || a.was(corev1.PodInitialized) {
		return condition(corev1.PodInitialized, true, "", "")
	}
	return condition(corev1.PodInitialized, false, "ContainersNotInitialized",
		fmt.Sprintf("containers with incomplete status: %s", missing))
}

// was tells that a condition was true before.
func (a account) was(kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(a.old.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == kind && c.Status == corev1.ConditionTrue
	})
}

func (a account) containersReady(s *corev1.PodStatus) corev1.PodCondition {
	switch {
	case s.ContainerStatuses == nil && s.Phase != corev1.PodFailed:
		return condition(corev1.ContainersReady, false, "UnknownContainerStatuses", "")
	case s.Phase == corev1.PodSucceeded:
		return condition(corev1.ContainersReady, false, "PodCompleted", "")
	case s.Phase == corev1.PodFailed:
		return condition(corev1.ContainersReady, false, "PodFailed", "")
	}
	var unready []string
	for _, u := range units(a.view.pod) {
		var cs *corev1.ContainerStatus
		switch u.class {
		case regular:
			cs = statusOf(s.ContainerStatuses, u.Name)
		case sidecar:
			cs = statusOf(s.InitContainerStatuses, u.Name)
		default:
			continue
		}
		if cs == nil || !cs.Ready {
			unready = append(unready, u.Name)
		}
	}
	if len(unready) > 0 {
		return condition(corev1.ContainersReady, false, "ContainersNotReady",
			fmt.Sprintf("containers with unready status: %s", unready))
	}
	return condition(corev1.ContainersReady, true, "", "")
}

// ready follows the containers and the pod's readiness gates.
func ready(pod *corev1.Pod, containers corev1.PodCondition, all []corev1.PodCondition) corev1.PodCondition {
	containers.Type = corev1.PodReady
	if containers.Status != corev1.ConditionTrue {
		return containers
	}
	var shut []string
	for _, gate := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(all, func(c corev1.PodCondition) bool { return c.Type == gate.ConditionType })
		switch {
		case i < 0:
			shut = append(shut, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		case all[i].Status != corev1.ConditionTrue:
			shut = append(shut, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), all[i].Status))
		}
	}
	if len(shut) > 0 {
		return condition(corev1.PodReady, false, "ReadinessGatesNotReady", strings.Join(shut, ", "))
	}
	return containers
}

// restarting is shown on pods that a container's exit can restart as a whole.
func (a account) restarting() (corev1.PodCondition, bool) {
	pod, could, does := a.view.pod, false, false
	for _, u := range units(pod) {
		for _, r := range u.RestartPolicyRules {
			could = could || r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		}
		c := a.view.seen.latest(u.Name)
		does = does || c.exited() && u.restartsAll(c.ExitCode)
	}
	if !could {
		return corev1.PodCondition{}, false
	}
	if does && a.view.halt == nil {
		return condition(corev1.AllContainersRestarting, true, "RestartAllContainersStarted", "container exited with restart policy rule"), true
	}
	return condition(corev1.AllContainersRestarting, false, "", ""), true
}
