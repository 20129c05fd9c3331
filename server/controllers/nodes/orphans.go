package nodes

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// maxFinishedPods are kept before the oldest finished ones are deleted
// (kube-controller-manager's --terminated-pod-gc-threshold).
const maxFinishedPods = 12500

// quarantine is how long a node must be gone before its pods are deleted.
const quarantine = 40 * time.Second

// Orphans deletes pods that no node will ever finish: those of deleted nodes,
// those deleted before they got a node, those of nodes declared out of service
// and the oldest of too many finished ones.
func Orphans(r *registry.Registry, index *children.Index, now func() time.Time) *loop.Controller {
	nodes, pods := registry.Of[*corev1.Node](r), registry.Of[*corev1.Pod](r)
	finished := newFinishedPods()
	return &loop.Controller{
		Name: "pod-garbage-collector",
		Sources: []loop.Source{
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key {
				tooMany := finished.observe(p, deleted)
				if deleted {
					return tooMany
				}
				if old == nil || old.DeletionTimestamp == nil && p.DeletionTimestamp != nil || old.Spec.NodeName != p.Spec.NodeName {
					return append(tooMany, loop.KeyOf(p))
				}
				return tooMany
			}),
			loop.Changes(r, func(_, n *corev1.Node, deleted bool) []loop.Key {
				if !deleted && !outOfService(n) {
					return nil
				}
				var keys []loop.Key
				for _, p := range index.OnNode(n.Name) {
					keys = append(keys, loop.KeyOf(p))
				}
				return keys
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			if err != nil {
				return 0, nil
			}
			if finished.surplus(p) {
				return 0, remove(ctx, pods, p)
			}
			if p.Spec.NodeName == "" {
				if p.DeletionTimestamp == nil {
					return 0, nil
				}
				return 0, remove(ctx, pods, p)
			}
			n, err := nodes.Get("", p.Spec.NodeName)
			if err == nil {
				if outOfService(n) && p.DeletionTimestamp != nil && condition(n, corev1.NodeReady).Status != corev1.ConditionTrue {
					return 0, remove(ctx, pods, p)
				}
				return 0, nil
			}
			if wait := finished.lostFor(p.Spec.NodeName, now()); wait < quarantine {
				return quarantine - wait, nil
			}
			if _, err := pods.MutateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
				fail(p, now())
				return nil
			}); err != nil {
				return 0, ignoreNotFound(err)
			}
			return 0, remove(ctx, pods, p)
		},
	}
}

func outOfService(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// fail records why a pod of a vanished node ends.
func fail(p *corev1.Pod, now time.Time) {
	if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		p.Status.Phase = corev1.PodFailed
	}
	p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
		Message: "PodGC: node no longer exists", LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(), ObservedGeneration: p.Generation,
	})
}

func remove(ctx context.Context, pods registry.Typed[*corev1.Pod], p *corev1.Pod) error {
	zero := int64(0)
	return ignoreNotFound(pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.UID},
	}))
}
