package replicaset

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"orch/server/controllers/children"
)

// maxBurst is the most pods that one look at a set makes or deletes.
const maxBurst = 500

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// Plan is what brings a set to its number of replicas.
type Plan struct {
	Create int
	Delete []*corev1.Pod
	Again  time.Duration // when a pod will have been ready for long enough
}

// Reconcile compares the pods of a set with the number wanted. related gives
// all pods that count when choosing which node to take a pod from.
func Reconcile(now time.Time, replicas, minReadySeconds int32, pods []*corev1.Pod, related func() []*corev1.Pod) Plan {
	var plan Plan
	var active []*corev1.Pod
	for _, p := range pods {
		if !children.Active(p) {
			continue
		}
		active = append(active, p)
		if ok, wait := children.Available(p, minReadySeconds, now); !ok {
			plan.Again = children.Soonest(plan.Again, wait)
		}
	}
	switch surplus := len(active) - int(replicas); {
	case surplus < 0:
		plan.Create = min(-surplus, maxBurst)
	case surplus > 0:
		surplus = min(surplus, maxBurst)
		if surplus < len(active) {
			children.SortForDeletion(active, related(), now)
		}
		plan.Delete = active[:surplus]
	}
	return plan
}

// Counts are the figures of a set's status.
type Counts struct {
	Replicas, Labeled, Ready, Available, Terminating int32
}

// Count counts the pods of a set. want are the labels of its template.
func Count(now time.Time, want labels.Set, minReadySeconds int32, pods []*corev1.Pod) Counts {
	var c Counts
	template := labels.SelectorFromSet(want)
	for _, p := range pods {
		if p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			c.Terminating++
		}
		if !children.Active(p) {
			continue
		}
		c.Replicas++
		if template.Matches(labels.Set(p.Labels)) {
			c.Labeled++
		}
		if children.Ready(p) {
			c.Ready++
		}
		if ok, _ := children.Available(p, minReadySeconds, now); ok {
			c.Available++
		}
	}
	return c
}
