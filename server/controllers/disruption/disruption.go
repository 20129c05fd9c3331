// Package disruption keeps the status of pod disruption budgets, from which the
// eviction of pods takes what may go.
package disruption

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Controller gives the disruption controller.
func Controller(r *registry.Registry, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{
		registry: r, budgets: registry.Of[*policyv1.PodDisruptionBudget](r), pods: registry.Of[*corev1.Pod](r),
		sets: registry.Of[*appsv1.ReplicaSet](r), events: events, now: now,
	}
	return &loop.Controller{
		Name:    "disruption",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*policyv1.PodDisruptionBudget](r),
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key {
				if old != nil && !deleted && sameForBudgets(old, p) {
					return nil
				}
				return c.budgetsOf(old, p)
			}),
		},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	registry *registry.Registry
	budgets  registry.Typed[*policyv1.PodDisruptionBudget]
	pods     registry.Typed[*corev1.Pod]
	sets     registry.Typed[*appsv1.ReplicaSet]
	events   record.EventRecorder
	now      func() time.Time
}

func sameForBudgets(a, b *corev1.Pod) bool {
	x, y := metav1.GetControllerOfNoCopy(a), metav1.GetControllerOfNoCopy(b)
	return labels.Equals(a.Labels, b.Labels) && children.Ready(a) == children.Ready(b) &&
		a.DeletionTimestamp.IsZero() == b.DeletionTimestamp.IsZero() && (x == nil) == (y == nil) && (x == nil || x.UID == y.UID)
}

func (c *controller) budgetsOf(old, p *corev1.Pod) (keys []loop.Key) {
	for _, b := range c.budgets.List(p.Namespace, nil) {
		selector := selectorOf(b)
		if selector.Matches(labels.Set(p.Labels)) || old != nil && selector.Matches(labels.Set(old.Labels)) {
			keys = append(keys, loop.KeyOf(b))
		}
	}
	return keys
}

func selectorOf(b *policyv1.PodDisruptionBudget) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	b, err := c.budgets.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	s := Snapshot{Budget: b, Pods: c.pods.List(key.Namespace, selectorOf(b)), Scale: c.scaleOf}
	plan := Reconcile(c.now(), s)
	for _, e := range plan.Events {
		c.events.Event(b, e.Type, e.Reason, e.Message)
	}
	for _, p := range plan.NotDeleted {
		c.events.Eventf(p, corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name)
	}
	changed := b.DeepCopy()
	changed.Status = plan.Status
	_, err = c.budgets.UpdateStatus(ctx, changed)
	return plan.Again, children.IgnoreNotFound(err)
}

// scaleOf finds how many pods the controller of a pod should have. Deployments
// count as a whole, not by their sets. known is false when it has gone.
func (c *controller) scaleOf(namespace string, ref *metav1.OwnerReference) (scale Scale, known bool, err error) {
	if ref.Kind == "ReplicaSet" {
		rs, err := c.sets.Get(namespace, ref.Name)
		if err != nil || rs.UID != ref.UID {
			return Scale{}, false, nil
		}
		if owner := metav1.GetControllerOfNoCopy(rs); owner != nil {
			ref = owner
		}
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return Scale{}, false, err
	}
	res := c.resourceOf(gv.WithKind(ref.Kind))
	if res == nil {
		return Scale{}, false, fmt.Errorf("no matches for kind %q in version %q", ref.Kind, ref.APIVersion)
	}
	i := slices.IndexFunc(res.Subresources, func(s *registry.Subresource) bool { return s.Name == "scale" && s.Project != nil })
	if i < 0 {
		return Scale{}, false, fmt.Errorf("%s does not implement the scale subresource", res.GroupResource())
	}
	obj, err := c.registry.Get(context.Background(), res, namespace, ref.Name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) || err == nil && obj.GetUID() != ref.UID {
		return Scale{}, false, nil
	}
	if err != nil {
		return Scale{}, false, err
	}
	projected, err := res.Subresources[i].Project.Get(obj)
	if err != nil {
		return Scale{}, false, err
	}
	s, ok := projected.(*autoscalingv1.Scale)
	if !ok {
		return Scale{}, false, fmt.Errorf("%s has a scale of another kind", res.GroupResource())
	}
	return Scale{s.UID, s.Spec.Replicas}, true, nil
}

func (c *controller) resourceOf(gvk schema.GroupVersionKind) *registry.Resource {
	for _, res := range c.registry.Resources() {
		if res.GVK() == gvk && res.Evaluate == nil {
			return res
		}
	}
	return nil
}
