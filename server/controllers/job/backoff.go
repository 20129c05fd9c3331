package job

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A pod is replaced the more slowly the more often it has failed.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 10 * time.Minute
)

// Failures is the memory of a job's pods that failed since the last success.
type Failures struct {
	Count int32
	Last  time.Time
}

// after gives the memory with pods that have ended since.
func (f Failures) after(succeeded, failed []*corev1.Pod) Failures {
	since := time.Time{}
	if len(succeeded) > 0 {
		f = Failures{}
		for _, p := range succeeded {
			since = latest(since, finishTime(p))
		}
	}
	for _, p := range failed {
		if at := finishTime(p); at.After(since) || len(succeeded) == 0 {
			f.Count++
			f.Last = latest(f.Last, at)
		}
	}
	return f
}

// wait is how long the next pod must wait yet.
func (f Failures) wait(now time.Time) time.Duration {
	if f.Count == 0 {
		return 0
	}
	backoff := firstBackoff
	for i := int32(1); i < f.Count && backoff < maxBackoff; i++ {
		backoff *= 2
	}
	return max(0, min(backoff, maxBackoff)-now.Sub(f.Last))
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// finishTime is when a pod has ended, as well as its status tells.
func finishTime(p *corev1.Pod) time.Time {
	if at, ok := lastTermination(p); ok {
		return at
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime.Time
		}
	}
	if p.DeletionTimestamp != nil {
		grace := time.Duration(0)
		if p.DeletionGracePeriodSeconds != nil {
			grace = time.Duration(*p.DeletionGracePeriodSeconds) * time.Second
		}
		return p.DeletionTimestamp.Add(-grace)
	}
	return p.CreationTimestamp.Time
}

// lastTermination is the end of the last container; false when one has not
// ended.
func lastTermination(p *corev1.Pod) (at time.Time, ok bool) {
	statuses := slices.Clone(p.Status.ContainerStatuses)
	for _, s := range p.Status.InitContainerStatuses {
		for _, c := range p.Spec.InitContainers {
			if c.Name == s.Name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				statuses = append(statuses, s)
			}
		}
	}
	for _, s := range statuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}, false
		}
		at = latest(at, s.State.Terminated.FinishedAt.Time)
	}
	return at, len(statuses) > 0
}

// memory keeps the Failures of running jobs. A restart forgets them, which at
// worst replaces a pod too early.
type memory struct {
	mu   sync.Mutex
	jobs map[types.UID]Failures
}

func (m *memory) get(uid types.UID) Failures {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.jobs[uid]
}

func (m *memory) set(uid types.UID, f Failures) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Count == 0 {
		delete(m.jobs, uid)
		return
	}
	m.jobs[uid] = f
}
