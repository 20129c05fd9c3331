// Package deployment rolls replica sets forward and back as Deployments ask for.
package deployment

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// Controller gives the deployment controller.
func Controller(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{
		deployments: registry.Of[*appsv1.Deployment](r), sets: registry.Of[*appsv1.ReplicaSet](r),
		pods: index, events: events, now: now,
	}
	return &loop.Controller{
		Name:    "deployment",
		Workers: 8,
		Sources: []loop.Source{
			loop.Each[*appsv1.Deployment](r),
			children.OwnerKeys(r, "Deployment", func(rs *appsv1.ReplicaSet) (keys []loop.Key) {
				for _, d := range c.deployments.List(rs.Namespace, nil) {
					if selectorOf(d).Matches(labels.Set(rs.Labels)) {
						keys = append(keys, loop.KeyOf(d))
					}
				}
				return keys
			}),
			// Recreate waits for the last old pod to be gone.
			loop.Changes(r, func(_, p *corev1.Pod, deleted bool) []loop.Key {
				if !deleted {
					return nil
				}
				return c.ownerOfPod(p)
			}),
		},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	deployments registry.Typed[*appsv1.Deployment]
	sets        registry.Typed[*appsv1.ReplicaSet]
	pods        *children.Index
	events      record.EventRecorder
	now         func() time.Time
}

func (c *controller) ownerOfPod(p *corev1.Pod) []loop.Key {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	rs, err := c.sets.Get(p.Namespace, ref.Name)
	if err != nil {
		return nil
	}
	if owner := metav1.GetControllerOfNoCopy(rs); owner != nil && owner.Kind == kind.Kind {
		return []loop.Key{{Namespace: p.Namespace, Name: owner.Name}}
	}
	return nil
}

func selectorOf(d *appsv1.Deployment) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || selector.Empty() {
		return labels.Nothing()
	}
	return selector
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	d, err := c.deployments.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	if s := d.Spec.Selector; s != nil && len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0 {
		c.events.Event(d, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	owner := children.Owner{Object: d, Kind: kind, Selector: selectorOf(d)}
	sets, err := children.Apply(ctx, owner, c.sets, children.ClaimAll(owner, c.sets.List(key.Namespace, nil)))
	if err != nil {
		return 0, err
	}
	if d.DeletionTimestamp != nil {
		return 0, c.writeStatus(ctx, d, statusOf(d, sets, c.now()))
	}
	plan := Reconcile(c.now(), Snapshot{Deployment: d, Sets: sets, OldPods: c.podsRun})
	if err := c.apply(ctx, d, plan); err != nil {
		return 0, err
	}
	return plan.Again, nil
}

// podsRun tells whether pods of old sets are still there.
func (c *controller) podsRun(old []*appsv1.ReplicaSet) bool {
	for _, rs := range old {
		for _, p := range c.pods.OfOwner(rs.UID) {
			if p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
				return true
			}
		}
	}
	return false
}

func (c *controller) apply(ctx context.Context, d *appsv1.Deployment, plan Plan) error {
	var failure error
	if plan.Create != nil {
		failure = c.create(ctx, d, plan.Create)
	}
	for _, s := range plan.Scale {
		if err := c.scale(ctx, d, s); err != nil {
			return err
		}
	}
	for _, rs := range plan.Annotate {
		if _, err := c.sets.Update(ctx, rs); children.IgnoreNotFound(err) != nil {
			return err
		}
	}
	for _, rs := range plan.Delete {
		err := c.sets.Delete(ctx, rs.Namespace, rs.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &rs.UID}})
		if children.IgnoreNotFound(err) != nil {
			return err
		}
	}
	if plan.Revision != "" && d.Annotations[revisionAnnotation] != plan.Revision {
		if _, err := c.deployments.Mutate(ctx, d.Namespace, d.Name, func(d *appsv1.Deployment) error {
			metav1.SetMetaDataAnnotation(&d.ObjectMeta, revisionAnnotation, plan.Revision)
			return nil
		}); children.IgnoreNotFound(err) != nil {
			return err
		}
	}
	status := plan.Status
	if failure != nil {
		status = withFailure(d, status, plan.Create.Name, failure, c.now())
	}
	if err := c.writeStatus(ctx, d, status); err != nil {
		return err
	}
	return failure
}

func (c *controller) create(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet) error {
	created, err := c.sets.Create(ctx, rs)
	switch {
	case apierrors.IsAlreadyExists(err):
		// Either we made it ourselves and read too early, or another template has
		// the same hash: then the next one is salted differently.
		existing, getErr := c.sets.Get(rs.Namespace, rs.Name)
		if getErr == nil && metav1.IsControlledBy(existing, d) && sameTemplate(&existing.Spec.Template, &d.Spec.Template) {
			return nil
		}
		_, err = c.deployments.MutateStatus(ctx, d.Namespace, d.Name, func(d *appsv1.Deployment) error {
			count := int32(0)
			if d.Status.CollisionCount != nil {
				count = *d.Status.CollisionCount
			}
			count++
			d.Status.CollisionCount = &count
			return nil
		})
		return children.IgnoreNotFound(err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case err != nil:
		c.events.Eventf(d, corev1.EventTypeWarning, "ReplicaSetCreateError", "Failed to create new replica set %q: %v", rs.Name, err)
		return err
	}
	if n := *created.Spec.Replicas; n > 0 {
		c.events.Eventf(d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", created.Name, n)
	}
	return nil
}

func (c *controller) scale(ctx context.Context, d *appsv1.Deployment, s Scaling) error {
	was := *s.Set.Spec.Replicas
	changed := s.Set.DeepCopy()
	*changed.Spec.Replicas = s.Replicas
	setReplicasAnnotations(d, changed)
	if _, err := c.sets.Update(ctx, changed); err != nil {
		return children.IgnoreNotFound(err)
	}
	direction := "up"
	if s.Replicas < was {
		direction = "down"
	}
	if s.Replicas != was {
		c.events.Eventf(d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, s.Set.Name, was, s.Replicas)
	}
	return nil
}

func (c *controller) writeStatus(ctx context.Context, d *appsv1.Deployment, status appsv1.DeploymentStatus) error {
	_, err := c.deployments.MutateStatus(ctx, d.Namespace, d.Name, func(now *appsv1.Deployment) error {
		if now.UID != d.UID {
			return nil
		}
		collisions := now.Status.CollisionCount
		status.DeepCopyInto(&now.Status)
		now.Status.CollisionCount = collisions
		return nil
	})
	return children.IgnoreNotFound(err)
}
