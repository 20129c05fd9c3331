package replicaset

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// kind is what differs between the kinds of sets.
type kind[T registry.Object] struct {
	gvk     schema.GroupVersionKind
	name    string // of the controller
	workers int
	spec    func(T) spec
	// setStatus brings the counts and the failure (nil: none) into now, which is
	// generation or newer.
	setStatus func(now T, generation int64, counts Counts, failure *failure, at metav1.Time)
}

// spec is what a set asks for.
type spec struct {
	replicas, minReadySeconds int32
	selector                  labels.Selector
	template                  *corev1.PodTemplateSpec
}

// failure is why a plan could not be carried out.
type failure struct{ reason, message string }

// controller keeps the sets of one kind.
type controller[T registry.Object] struct {
	kind[T]
	sets registry.Typed[T]
	pods children.Pods
	now  func() time.Time
}

func newController[T registry.Object](k kind[T], r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller[T]{kind: k, sets: registry.Of[T](r), pods: children.NewPods(r, index, events), now: now}
	return &loop.Controller{
		Name:    k.name,
		Workers: k.workers,
		Sources: []loop.Source{
			loop.Each[T](r),
			children.OwnerKeys(r, k.gvk.Kind, func(p *corev1.Pod) (keys []loop.Key) {
				for _, set := range c.sets.List(p.Namespace, nil) {
					if k.spec(set).selector.Matches(labels.Set(p.Labels)) {
						keys = append(keys, loop.KeyOf(set))
					}
				}
				return keys
			}),
		},
		Reconcile: c.reconcile,
	}
}

func (c *controller[T]) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	set, err := c.sets.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	want := c.spec(set)
	owner := children.Owner{Object: set, Kind: c.gvk, Selector: want.selector}
	pods, err := c.pods.Claim(ctx, owner)
	if err != nil {
		return 0, err
	}
	var plan Plan
	var trouble error
	if set.GetDeletionTimestamp() == nil {
		plan = Reconcile(c.now(), want.replicas, want.minReadySeconds, pods, func() []*corev1.Pod { return c.related(set, pods) })
		trouble = c.apply(ctx, owner, want.template, plan)
	}
	if err := c.updateStatus(ctx, set, owner, want, failureOf(plan, trouble)); err != nil {
		return 0, err
	}
	return plan.Again, trouble
}

func failureOf(plan Plan, err error) *failure {
	switch {
	case err == nil:
		return nil
	case plan.Create > 0:
		return &failure{"FailedCreate", err.Error()}
	}
	return &failure{"FailedDelete", err.Error()}
}

func (c *controller[T]) apply(ctx context.Context, owner children.Owner, template *corev1.PodTemplateSpec, plan Plan) error {
	if plan.Create > 0 {
		_, err := children.CreateMany(ctx, plan.Create, func(ctx context.Context, _ int) error {
			_, err := c.pods.MakePod(ctx, owner.Object, children.FromTemplate(template, owner.Object, owner.Kind))
			return err
		})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	}
	return c.pods.DeletePods(ctx, owner.Object, plan.Delete)
}

// related gives the pods of all sets with the same owner, which spread over
// the same nodes.
func (c *controller[T]) related(set T, pods []*corev1.Pod) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(set)
	if ref == nil {
		return pods
	}
	var related []*corev1.Pod
	for _, other := range c.sets.List(set.GetNamespace(), nil) {
		if r := metav1.GetControllerOfNoCopy(other); r != nil && r.UID == ref.UID {
			related = append(related, c.pods.OfOwner(other.GetUID())...)
		}
	}
	return related
}

func (c *controller[T]) updateStatus(ctx context.Context, set T, owner children.Owner, want spec, failure *failure) error {
	pods := children.ClaimAll(owner, c.pods.OfOwner(set.GetUID())).Mine // as it is after the plan
	counts := Count(c.now(), want.template.Labels, want.minReadySeconds, pods)
	_, err := c.sets.MutateStatus(ctx, set.GetNamespace(), set.GetName(), func(now T) error {
		if now.GetUID() == set.GetUID() {
			c.setStatus(now, set.GetGeneration(), counts, failure, metav1.NewTime(c.now()).Rfc3339Copy())
		}
		return nil
	})
	return children.IgnoreNotFound(err)
}
