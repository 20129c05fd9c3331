package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resizing is how far an in-place change of a pod's resources has come
// (KEP-1287).
type resizing struct {
	pending    *refusal // Deferred or Infeasible
	active     bool     // allocated, and not yet in force everywhere
	failure    string
	generation int64 // the pod's, when what is allocated was decided
}

// allocate decides which resources the pod's containers get: those of the spec
// as soon as the node has room for them, those of before until then.
func (w *worker) allocate() {
	if w.pod == nil || w.gone {
		return
	}
	if w.allocated == nil {
		w.allocated = firstAllocation(w.pod, w.adopted)
	}
	if !w.differs() {
		w.resizing.pending = nil
		return
	}
	if w.down() {
		return
	}
	node := w.m.cfg.Node()
	if node == nil {
		return
	}
	if w.resizing.generation == w.pod.Generation && w.resizing.pending != nil && w.resizing.pending.reason == corev1.PodReasonInfeasible {
		return
	}
	w.resizing.generation = w.pod.Generation
	if r := lack(w.pod, node, nil); r != nil {
		w.postpone(corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", r.resource, r.want, r.total))
		return
	}
	if r := lack(w.pod, node, w.m.others(w.uid)); r != nil {
		w.postpone(corev1.PodReasonDeferred, r.String())
		return
	}
	w.allocated = specAllocation(w.pod)
	w.resizing = resizing{active: true, generation: w.pod.Generation}
	w.event(nil, corev1.EventTypeNormal, "ResizeStarted", resizeMessage("started", w.pod, ""))
}

func (w *worker) postpone(reason, message string) {
	if p := w.resizing.pending; p == nil || p.reason != reason {
		w.event(nil, corev1.EventTypeWarning, "Resize"+reason, resizeMessage(reason, w.pod, message))
	}
	w.resizing.pending = &refusal{reason, message}
}

// resizeMessage tells of a resize as kubelet does: the stage it has reached, and
// the resources that it is about in JSON, for programs.
func resizeMessage(stage string, pod *corev1.Pod, failure string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: pod.Generation, Error: failure}
	for _, u := range units(pod) {
		switch u.class {
		case regular:
			summary.Containers = append(summary.Containers, container{u.Name, u.Resources})
		case initial, sidecar:
			summary.InitContainers = append(summary.InitContainers, container{u.Name, u.Resources})
		}
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return "Pod resize " + stage
	}
	return "Pod resize " + stage + ": " + string(text)
}

func specAllocation(pod *corev1.Pod) map[string]corev1.ResourceRequirements {
	all := make(map[string]corev1.ResourceRequirements)
	for _, u := range units(pod) {
		all[u.Name] = u.Resources
	}
	return all
}

// firstAllocation is the spec's, or for a pod that ran before us what its
// status says it was given.
func firstAllocation(pod *corev1.Pod, adopted bool) map[string]corev1.ResourceRequirements {
	all := specAllocation(pod)
	if !adopted {
		return all
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, cs := range list {
			if cs.AllocatedResources == nil || cs.Resources == nil {
				continue
			}
			if _, ok := all[cs.Name]; ok {
				given := *cs.Resources.DeepCopy()
				given.Requests = cs.AllocatedResources.DeepCopy()
				all[cs.Name] = given
			}
		}
	}
	return all
}

// differs tells that the spec asks for other resources than were allocated.
func (w *worker) differs() bool {
	for _, u := range units(w.pod) {
		given, ok := w.allocated[u.Name]
		if !ok { // an ephemeral container that came later
			w.allocated[u.Name] = u.Resources
			continue
		}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if !equalQuantity(given.Requests, u.Resources.Requests, name) || !equalQuantity(given.Limits, u.Resources.Limits, name) {
				return true
			}
		}
	}
	return false
}

func equalQuantity(a, b corev1.ResourceList, name corev1.ResourceName) bool {
	x, y := a[name], b[name]
	return x.Cmp(y) == 0
}

// allocatedPod is the pod with the resources that its containers are given.
func (w *worker) allocatedPod() *corev1.Pod {
	if w.resizing.pending == nil {
		return w.pod
	}
	pod := w.pod.DeepCopy()
	for _, u := range units(pod) {
		if given, ok := w.allocated[u.Name]; ok && u.class != ephemeral {
			u.Resources = given
		}
	}
	return pod
}

// resizes compares what running containers have with what they were allocated:
// whether something is to be changed, and which containers must restart for it.
func (w *worker) resizes() (any bool, remake map[string]bool) {
	if w.down() || w.allocated == nil {
		return false, nil
	}
	remake = make(map[string]bool)
	pod := w.allocatedPod()
	for _, u := range units(pod) {
		c := w.seen.latest(u.Name)
		if !c.running() || u.class == ephemeral {
			continue
		}
		for _, r := range w.m.outdated(pod, u, c) {
			any = true
			if slices.ContainsFunc(u.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
				return p.ResourceName == r && p.RestartPolicy == corev1.RestartContainer
			}) {
				remake[c.ID] = true
			}
		}
	}
	if !any {
		delete(w.retries, resize.key())
	}
	if !any && w.resizing.active {
		w.resizing.active, w.resizing.failure = false, ""
		w.event(nil, corev1.EventTypeNormal, "ResizeCompleted", resizeMessage("completed", pod, ""))
	}
	return any, remake
}

// outdated names the resources in which a running container differs from its
// spec. The runtime knows what is in force, so nothing need be remembered.
func (m *Manager) outdated(pod *corev1.Pod, u unit, c *container) []corev1.ResourceName {
	have := c.CRI.GetResources().GetLinux()
	if have == nil {
		return nil
	}
	want := m.containerResources(pod, u.Container)
	var all []corev1.ResourceName
	if have.GetCpuShares() != 0 && want.CpuShares != have.GetCpuShares() || max(want.CpuQuota, 0) != max(have.GetCpuQuota(), 0) {
		all = append(all, corev1.ResourceCPU)
	}
	if want.MemoryLimitInBytes != max(have.GetMemoryLimitInBytes(), 0) {
		all = append(all, corev1.ResourceMemory)
	}
	return all
}

// resizeContainers puts the allocated resources in force. The pod's cgroup is
// widened before its containers and narrowed after them.
func (w *worker) resizeContainers(ctx context.Context) func() func() {
	pod, m := w.allocatedPod(), w.m
	type change struct {
		unit unit
		id   string
	}
	var changes []change
	for _, u := range units(pod) {
		if c := w.seen.latest(u.Name); c.running() && len(m.outdated(pod, u, c)) > 0 {
			changes = append(changes, change{u, c.ID})
		}
	}
	return func() func() {
		err := m.cgroups.widen(pod)
		var reports []report
		for _, c := range changes {
			if err != nil {
				break
			}
			_, err = m.cfg.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: c.id, Linux: updatable(m.containerResources(pod, c.unit.Container)),
			})
			reports = append(reports, m.containerReport(ctx, c.id))
		}
		if err == nil {
			err = m.cgroups.ensure(pod)
		}
		return func() {
			for _, r := range reports {
				w.take(r)
			}
			w.fail(resize.key(), time.Second, time.Minute) // should it have had no effect
			if err != nil {
				w.resizing.failure = message(err)
				w.event(nil, corev1.EventTypeWarning, "ResizeError", resizeMessage("error", w.pod, message(err)))
			}
		}
	}
}

// updatable writes "no limit" the way an update needs it.
func updatable(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if r.CpuQuota == 0 {
		r.CpuQuota = -1
	}
	if r.MemoryLimitInBytes == 0 {
		r.MemoryLimitInBytes = -1
	}
	return r
}

func (w *worker) resizeConditions() []corev1.PodCondition {
	var all []corev1.PodCondition
	if p := w.resizing.pending; p != nil {
		c := condition(corev1.PodResizePending, true, p.reason, p.message)
		c.ObservedGeneration = w.resizing.generation
		all = append(all, c)
	}
	if w.resizing.active {
		c := condition(corev1.PodResizeInProgress, true, "", "")
		if w.resizing.failure != "" {
			c.Reason, c.Message = corev1.PodReasonError, w.resizing.failure
		}
		c.ObservedGeneration = w.resizing.generation
		all = append(all, c)
	}
	return all
}
