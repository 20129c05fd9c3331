package disruption

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// staleTimeout is how long a pod may be marked as disrupted without being
// deleted.
const staleTimeout = 2 * time.Minute

// Stale takes the DisruptionTarget condition back from pods that were marked
// and then not deleted.
func Stale(r *registry.Registry, now func() time.Time) *loop.Controller {
	pods := registry.Of[*corev1.Pod](r)
	return &loop.Controller{
		Name: "stale-disruption",
		Sources: []loop.Source{loop.Changes(r, func(_, p *corev1.Pod, deleted bool) []loop.Key {
			if deleted || target(p) == nil {
				return nil
			}
			return []loop.Key{loop.KeyOf(p)}
		})},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			if err != nil || target(p) == nil {
				return 0, nil
			}
			if wait := target(p).LastTransitionTime.Add(staleTimeout).Sub(now()); wait > 0 {
				return wait, nil
			}
			_, err = pods.MutateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
				if c := target(p); c != nil {
					*c = corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(now()).Rfc3339Copy(), ObservedGeneration: c.ObservedGeneration}
				}
				return nil
			})
			return 0, children.IgnoreNotFound(err)
		},
	}
}

// target is the condition of a pod that is marked but not on its way out.
func target(p *corev1.Pod) *corev1.PodCondition {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason != corev1.PodReasonTerminationByKubelet {
			return c
		}
	}
	return nil
}
