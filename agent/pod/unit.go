package pod

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// class tells the kinds of container of a pod apart.
type class int8

const (
	regular class = iota
	initial       // runs to completion before the next one
	sidecar       // an init container that stays
	ephemeral
)

// unit is one container of a pod's spec.
type unit struct {
	*corev1.Container
	class  class
	target string // ephemeral: whose process namespace it joins
}

// units gives all containers of a pod: init, regular, ephemeral.
func units(pod *corev1.Pod) []unit {
	all := make([]unit, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers)+len(pod.Spec.EphemeralContainers))
	all = append(all, initUnits(pod)...)
	for i := range pod.Spec.Containers {
		all = append(all, unit{Container: &pod.Spec.Containers[i], class: regular})
	}
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		c := corev1.Container(e.EphemeralContainerCommon)
		all = append(all, unit{Container: &c, class: ephemeral, target: e.TargetContainerName})
	}
	return all
}

func initUnits(pod *corev1.Pod) []unit {
	all := make([]unit, 0, len(pod.Spec.InitContainers))
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		kind := initial
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			kind = sidecar
		}
		all = append(all, unit{Container: c, class: kind})
	}
	return all
}

// findUnit gives the container of that name.
func findUnit(pod *corev1.Pod, name string) (unit, bool) {
	for _, u := range units(pod) {
		if u.Name == name {
			return u, true
		}
	}
	return unit{}, false
}

// restarts says whether a container that exited with code is to run again
// (KEP-5307: a matching rule first, then the container's policy, then the pod's).
func (u unit) restarts(pod *corev1.Pod, code int32) bool {
	if u.class == ephemeral {
		return false
	}
	if u.RestartPolicy != nil {
		if _, ok := u.rule(code); ok {
			return true
		}
		return policyRestarts(corev1.RestartPolicy(*u.RestartPolicy), code)
	}
	return policyRestarts(pod.Spec.RestartPolicy, code)
}

// runsAgain says whether a container that exited with code is to run again in
// its sandbox: an init container that succeeded is done, whatever its policy.
func (u unit) runsAgain(pod *corev1.Pod, code int32) bool {
	return (u.class != initial || code != 0) && u.restarts(pod, code)
}

func policyRestarts(policy corev1.RestartPolicy, code int32) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	default:
		return true
	}
}

// rule gives the first restart rule that matches an exit code.
func (u unit) rule(code int32) (corev1.ContainerRestartRule, bool) {
	for _, r := range u.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := false
		for _, v := range r.ExitCodes.Values {
			in = in || v == code
		}
		switch r.ExitCodes.Operator {
		case corev1.ContainerRestartRuleOnExitCodesOpIn:
			if in {
				return r, true
			}
		case corev1.ContainerRestartRuleOnExitCodesOpNotIn:
			if !in {
				return r, true
			}
		}
	}
	return corev1.ContainerRestartRule{}, false
}

// restartsAll says that exiting with code restarts every container of the pod.
func (u unit) restartsAll(code int32) bool {
	r, ok := u.rule(code)
	return ok && r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
}

// runsAgainAfterKill is the policy for a container that we killed ourselves.
func (u unit) runsAgainAfterKill(pod *corev1.Pod) bool {
	if u.RestartPolicy != nil {
		return *u.RestartPolicy != corev1.ContainerRestartPolicyNever
	}
	return pod.Spec.RestartPolicy != corev1.RestartPolicyNever
}

// hashOf identifies what may not change while a container runs: its image.
func hashOf(c *corev1.Container) string {
	h := fnv.New32a()
	_ = json.NewEncoder(h).Encode([2]string{c.Name, c.Image}) // a hash cannot fail
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// Crash back-off, as kubelet has it.
const (
	backoffStart = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 10 * time.Minute
)

// backoffAfter gives how long the successor of dead has to wait. The delay that
// applies to a container when it crashes was written into it when it was made,
// so nothing is forgotten over a restart of the agent.
func backoffAfter(dead *container) time.Duration {
	if dead.Finished.Sub(dead.Created) > backoffReset {
		return 0
	}
	return dead.Backoff
}

// backoffFor gives the delay to write into the successor of dead.
func backoffFor(dead *container) time.Duration {
	switch {
	case dead == nil:
		return 0
	case dead.Backoff == 0 || dead.Finished.Sub(dead.Created) > backoffReset:
		return backoffStart
	default:
		return min(2*dead.Backoff, backoffMax)
	}
}

// describe names a pod in messages the way kubelet does.
func describe(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
