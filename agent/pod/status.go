package pod

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"
)

// account is what a pod's status is computed from, beside its spec.
type account struct {
	view    *view
	old     *corev1.PodStatus // as last computed, or as the API has it
	hostIPs []string
	waiting map[string]corev1.ContainerStateWaiting
	// starting are names of containers whose start is under way.
	starting map[string]bool
	// making says that something may be about to run that is not in view.
	making bool
	ready  map[string]bool // verdict of the readiness probe by container ID; none: no probe
	resize []corev1.PodCondition
	// allocated are the resources that containers were given, where they are not
	// (yet) those of the spec.
	allocated map[string]corev1.ResourceRequirements
	scheme    string // of container IDs
}

// podStatus computes a pod's status. It is a pure function of the account.
func podStatus(a account) corev1.PodStatus {
	v, pod := a.view, a.view.pod
	s := *pod.Status.DeepCopy() // what is not ours stays
	s.ObservedGeneration = pod.Generation
	s.QOSClass = cmp.Or(pod.Status.QOSClass, qos.ComputePodQOS(pod))
	if s.StartTime == nil {
		s.StartTime = cmp.Or(a.old.StartTime, &metav1.Time{Time: v.now.Truncate(time.Second)})
	}
	a.addresses(&s)
	s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	if v.halt != nil && v.halt.rejected {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, v.halt.reason, v.halt.message
		s.Conditions = a.conditions(&s)
		return s
	}
	for _, u := range units(pod) {
		cs := a.container(u)
		switch u.class {
		case regular:
			s.ContainerStatuses = append(s.ContainerStatuses, cs)
		case ephemeral:
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, cs)
		default:
			s.InitContainerStatuses = append(s.InitContainerStatuses, cs)
		}
	}
	byName := func(x, y corev1.ContainerStatus) int { return strings.Compare(x.Name, y.Name) }
	slices.SortFunc(s.ContainerStatuses, byName)
	slices.SortFunc(s.EphemeralContainerStatuses, byName)
	s.AllocatedResources = podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	if pod.Spec.Resources != nil {
		s.Resources = pod.Spec.Resources.DeepCopy()
	}
	a.holdEnds(&s)
	a.phase(&s)
	s.Conditions = a.conditions(&s)
	return s
}

// holdEnds keeps what was told from being taken back. The end of a container
// that may not run again stays its end, and a pod that has ended keeps the ends
// of all: the API refuses anything else.
func (a account) holdEnds(s *corev1.PodStatus) {
	pod := a.view.pod
	for _, told := range []*corev1.PodStatus{a.old, &pod.Status} {
		for _, u := range units(pod) {
			old, now := findStatus(told, u.Name), findStatus(s, u.Name)
			if old == nil || old.State.Terminated == nil || now == nil {
				continue
			}
			back := now.State.Terminated == nil && !u.restarts(pod, old.State.Terminated.ExitCode) && !restartsTogether(pod)
			if back || terminal(told.Phase) {
				ready := u.class == initial && old.State.Terminated.ExitCode == 0
				*now = *old.DeepCopy()
				now.Ready = ready
			}
		}
	}
}

// restartsTogether says that the exit of some container starts all of them over.
func restartsTogether(pod *corev1.Pod) bool {
	return slices.ContainsFunc(units(pod), func(u unit) bool {
		return slices.ContainsFunc(u.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	})
}

func (a account) addresses(s *corev1.PodStatus) {
	s.HostIP, s.HostIPs = first(a.hostIPs), nil
	for _, ip := range a.hostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	ips := a.view.seen.ips()
	if a.view.pod.Spec.HostNetwork {
		ips = a.hostIPs
	}
	if len(ips) == 0 {
		return // the last known ones stay
	}
	s.PodIP, s.PodIPs = ips[0], nil
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
}

// container computes one container's status from its latest attempts, with the
// old status standing in for what the runtime no longer knows.
func (a account) container(u unit) corev1.ContainerStatus {
	old := findStatus(a.old, u.Name)
	cs := corev1.ContainerStatus{Name: u.Name, Image: u.Image, VolumeMounts: volumeMounts(u)}
	c := a.view.seen.latest(u.Name)
	if a.starting[u.Name] && !c.exited() {
		c = a.view.seen.latestExited(u.Name)
	}
	if c == nil {
		a.absent(u, &cs, old)
	} else {
		a.present(u, &cs, c, old)
	}
	if w, ok := a.waiting[u.Name]; ok && cs.State.Running == nil && a.mayStart(u, c) {
		if cs.State.Terminated != nil {
			cs.LastTerminationState = cs.State
		}
		cs.State = corev1.ContainerState{Waiting: &w}
	}
	a.readiness(u, &cs, c)
	return cs
}

// mayStart tells that a container that does not run is still meant to.
func (a account) mayStart(u unit, c *container) bool {
	v := a.view
	if v.halt != nil || v.gone || v.pod.DeletionTimestamp != nil {
		return false
	}
	return c == nil || !c.exited() || u.runsAgain(v.pod, c.ExitCode)
}

// findStatus gives the status of the container of that name; nil: none.
func findStatus(s *corev1.PodStatus, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		if found := statusOf(list, name); found != nil {
			return found
		}
	}
	return nil
}

// absent is the status of a container that the runtime does not have.
func (a account) absent(u unit, cs *corev1.ContainerStatus, old *corev1.ContainerStatus) {
	v := a.view
	cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if len(v.pod.Spec.InitContainers) > 0 {
		cs.State.Waiting.Reason = "PodInitializing"
	}
	if old == nil {
		return
	}
	cs.RestartCount, cs.LastTerminationState = old.RestartCount, old.LastTerminationState
	switch {
	case old.State.Terminated != nil && (u.class == initial || v.halt != nil || v.pod.DeletionTimestamp != nil):
		*cs = *old.DeepCopy() // it ran; its container was cleared away
	case old.State.Terminated != nil:
		cs.LastTerminationState = old.State
	case old.State.Running != nil && v.halt == nil && v.pod.DeletionTimestamp == nil:
		cs.LastTerminationState.Terminated = lost("The container could not be located when the pod was deleted.  The container used to be Running")
		cs.RestartCount++
	case (old.State.Running != nil || old.ContainerID != "") && !a.making:
		cs.State = corev1.ContainerState{Terminated: lost("The container could not be located when the pod was terminated")}
	}
}

// present is the status of a container from its newest attempt, and of the
// attempt before it.
func (a account) present(u unit, cs *corev1.ContainerStatus, c *container, old *corev1.ContainerStatus) {
	cs.RestartCount = c.Attempt
	cs.Image, cs.ImageID = cmp.Or(c.CRI.GetImage().GetImage(), u.Image), c.CRI.GetImageRef()
	cs.ContainerID = a.scheme + "://" + c.ID
	cs.State = a.state(c)
	if old != nil {
		cs.RestartCount = max(cs.RestartCount, old.RestartCount)
		if old.ContainerID != cs.ContainerID && old.State.Terminated != nil {
			cs.LastTerminationState = old.State
		} else {
			cs.LastTerminationState = old.LastTerminationState
		}
	}
	for _, prev := range a.view.seen.containers {
		if prev.Name == u.Name && prev != c && prev.exited() {
			cs.LastTerminationState = a.state(prev)
			break
		}
	}
	given, ok := a.allocated[u.Name]
	if !ok {
		given = u.Resources
	}
	cs.Resources, cs.AllocatedResources = effectiveResources(&given, c), given.Requests.DeepCopy()
	if l := c.CRI.GetUser().GetLinux(); l != nil {
		cs.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{
			UID: l.GetUid(), GID: l.GetGid(), SupplementalGroups: l.GetSupplementalGroups(),
		}}
	}
}

func (a account) state(c *container) corev1.ContainerState {
	switch {
	case c.running():
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.Started)}}
	case c.exited():
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, ContainerID: a.scheme + "://" + c.ID,
			StartedAt: metav1.NewTime(c.Started), FinishedAt: metav1.NewTime(c.Finished),
		}}
	}
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
}

func (a account) readiness(u unit, cs *corev1.ContainerStatus, c *container) {
	started := cs.State.Running != nil && a.view.started[c.ID]
	cs.Started = &started
	switch u.class {
	case ephemeral:
		cs.Ready, cs.Started = false, nil
	case initial:
		cs.Ready = cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
	default:
		ready, probed := false, false
		if c != nil {
			ready, probed = a.ready[c.ID]
		}
		cs.Ready = started && (ready || !probed)
	}
}

func volumeMounts(u unit) []corev1.VolumeMountStatus {
	var all []corev1.VolumeMountStatus
	for _, vm := range u.VolumeMounts {
		s := corev1.VolumeMountStatus{Name: vm.Name, MountPath: vm.MountPath, ReadOnly: vm.ReadOnly}
		if vm.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursiveReadOnly(vm) {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		all = append(all, s)
	}
	return all
}

// effectiveResources are those in force, as far as the runtime tells them.
func effectiveResources(given *corev1.ResourceRequirements, c *container) *corev1.ResourceRequirements {
	r := given.DeepCopy()
	l := c.CRI.GetResources().GetLinux()
	if !c.running() || l == nil {
		return r
	}
	if r.Limits != nil {
		if milli := l.GetCpuQuota() * 1000 / max(l.GetCpuPeriod(), 1); l.GetCpuQuota() > 0 &&
			(milli > leastLimit || r.Limits.Cpu().MilliValue() > leastLimit) {
			setQuantity(r.Limits, corev1.ResourceCPU, resource.NewMilliQuantity(milli, resource.DecimalSI))
		}
		if l.GetMemoryLimitInBytes() > 0 {
			setQuantity(r.Limits, corev1.ResourceMemory, resource.NewQuantity(l.GetMemoryLimitInBytes(), resource.BinarySI))
		}
	}
	if r.Requests != nil && l.GetCpuShares() > 0 && cpuShares(r.Requests.Cpu().MilliValue()) != l.GetCpuShares() {
		milli := (l.GetCpuShares()*1000 + 1023) / 1024
		setQuantity(r.Requests, corev1.ResourceCPU, resource.NewMilliQuantity(milli, resource.DecimalSI))
	}
	return r
}

// setQuantity replaces a quantity that is named already, keeping its spelling
// when its value is the same.
func setQuantity(list corev1.ResourceList, name corev1.ResourceName, q *resource.Quantity) {
	if old, ok := list[name]; ok && old.Cmp(*q) != 0 {
		list[name] = *q
	}
}

// mayRun tells that some container may yet be running.
func (a account) mayRun() bool {
	return a.making || len(a.view.seen.alive()) > 0
}
