// Package statefulset keeps the numbered pods of StatefulSets, each with an
// identity and storage of its own that outlive it.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

var (
	kind    = appsv1.SchemeGroupVersion.WithKind("StatefulSet")
	podKind = corev1.SchemeGroupVersion.WithKind("Pod")
)

// hashLabel names the contents of a revision.
const hashLabel = "controller.kubernetes.io/hash"

// Controller gives the StatefulSet controller.
func Controller(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{
		sets: registry.Of[*appsv1.StatefulSet](r), claims: registry.Of[*corev1.PersistentVolumeClaim](r),
		revisions: children.Revisions{Typed: registry.Of[*appsv1.ControllerRevision](r)},
		pods:      children.NewPods(r, index, events), events: events, now: now,
	}
	return &loop.Controller{
		Name:    "statefulset",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*appsv1.StatefulSet](r),
			children.OwnerKeys(r, kind.Kind, func(p *corev1.Pod) (keys []loop.Key) {
				for _, set := range c.sets.List(p.Namespace, nil) {
					if owner := ownerOf(set); owner.Selector.Matches(labels.Set(p.Labels)) && owner.Member(p.Name) {
						keys = append(keys, loop.KeyOf(set))
					}
				}
				return keys
			}),
			children.OwnerKeys[*appsv1.ControllerRevision](r, kind.Kind, nil),
			// A new pod waits until the claim of its predecessor has gone.
			loop.Changes(r, func(_, claim *corev1.PersistentVolumeClaim, deleted bool) []loop.Key {
				if !deleted {
					return nil
				}
				return setsOf(claim)
			}),
		},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	sets      registry.Typed[*appsv1.StatefulSet]
	claims    registry.Typed[*corev1.PersistentVolumeClaim]
	revisions children.Revisions
	pods      children.Pods
	events    record.EventRecorder
	now       func() time.Time
}

func ownerOf(set *appsv1.StatefulSet) children.Owner {
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || selector.Empty() {
		selector = labels.Nothing()
	}
	return children.Owner{Object: set, Kind: kind, Selector: selector, Member: func(name string) bool {
		parent, _ := parse(name)
		return parent == set.Name
	}}
}

// setsOf gives the sets that may wait for a claim: those whose name, with a
// number, ends the claim's.
func setsOf(claim *corev1.PersistentVolumeClaim) []loop.Key {
	parent, ordinal := parse(claim.Name)
	if ordinal < 0 {
		return nil
	}
	var keys []loop.Key
	for i, c := range parent {
		if c == '-' {
			keys = append(keys, loop.Key{Namespace: claim.Namespace, Name: parent[i+1:]})
		}
	}
	return keys
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	set, err := c.sets.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	owner := ownerOf(set)
	pods, err := c.pods.Claim(ctx, owner)
	if err != nil {
		return 0, err
	}
	history, err := c.settle(ctx, set, owner)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s, err := c.snapshot(set, pods, history)
	if err != nil {
		return 0, err
	}
	plan := Reconcile(c.now(), s)
	failure := c.apply(ctx, set, plan)
	if err := c.writeStatus(ctx, set, plan.Status, history.Collisions); err != nil {
		return 0, err
	}
	return plan.Again, errors.Join(failure, c.truncate(ctx, set, pods, plan.Status, history))
}

// settle gives the revisions. A set that is being deleted makes no new one.
func (c *controller) settle(ctx context.Context, set *appsv1.StatefulSet, owner children.Owner) (children.History, error) {
	owner.Member = nil // revisions have names of another form
	return c.revisions.Settle(ctx, owner, children.Template{
		Spec: &set.Spec.Template, Annotations: set.Annotations, Collisions: set.Status.CollisionCount, HashLabel: hashLabel,
	})
}

func (c *controller) snapshot(set *appsv1.StatefulSet, pods []*corev1.Pod, history children.History) (Snapshot, error) {
	s := Snapshot{
		Set: set, Pods: pods,
		Update:  Revision{history.Current.Name, &set.Spec.Template},
		Current: Revision{history.Current.Name, &set.Spec.Template},
		Claim: func(name string) *corev1.PersistentVolumeClaim {
			claim, err := c.claims.Get(set.Namespace, name)
			if err != nil {
				return nil
			}
			return claim
		},
	}
	for _, old := range history.Old {
		if old.Name == set.Status.CurrentRevision {
			template, err := children.TemplateOf(old)
			if err != nil {
				return s, err
			}
			s.Current = Revision{old.Name, template}
		}
	}
	return s, nil
}

func (c *controller) truncate(ctx context.Context, set *appsv1.StatefulSet, pods []*corev1.Pod, status appsv1.StatefulSetStatus, history children.History) error {
	return c.revisions.Truncate(ctx, history.Old, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool {
		return r.Name == status.CurrentRevision || r.Name == status.UpdateRevision ||
			slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return revisionOf(p) == r.Name })
	})
}

func (c *controller) apply(ctx context.Context, set *appsv1.StatefulSet, plan Plan) error {
	for _, claim := range plan.Retain {
		if _, err := c.claims.Update(ctx, claim); children.IgnoreNotFound(err) != nil {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", claim.Name, err)
		}
	}
	for _, name := range plan.Conflicting {
		c.events.Eventf(set, corev1.EventTypeWarning, "ConflictingController",
			"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim", name)
	}
	for _, p := range plan.Claimless {
		if err := c.makeClaims(ctx, set, p); err != nil {
			return err
		}
	}
	for _, p := range plan.Repair {
		_, err := c.pods.Update(ctx, p)
		if err = children.IgnoreNotFound(err); c.tell(set, "Update", p, err) != nil {
			return err
		}
	}
	for _, p := range plan.Delete {
		err := c.pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
		if err = children.IgnoreNotFound(err); c.tell(set, "Delete", p, err) != nil {
			return err
		}
	}
	_, err := children.CreateMany(ctx, len(plan.Create), func(ctx context.Context, i int) error {
		return c.create(ctx, set, plan.Create[i])
	})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

// tell records what became of an action on a pod, and passes err on.
func (c *controller) tell(set *appsv1.StatefulSet, verb string, p *corev1.Pod, err error) error {
	if err != nil {
		c.events.Eventf(set, corev1.EventTypeWarning, "Failed"+verb, "%s Pod %s in StatefulSet %s failed error: %s", verb, p.Name, set.Name, err)
		return err
	}
	c.events.Eventf(set, corev1.EventTypeNormal, "Successful"+verb, "%s Pod %s in StatefulSet %s successful", verb, p.Name, set.Name)
	return nil
}

func (c *controller) create(ctx context.Context, set *appsv1.StatefulSet, p *corev1.Pod) error {
	if err := c.makeClaims(ctx, set, p); err != nil {
		return c.tell(set, "Create", p, err)
	}
	_, err := c.pods.Create(ctx, p.DeepCopy())
	if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err // somebody else's pod, whose end will be seen; or all is ending
	}
	return c.tell(set, "Create", p, err)
}

// makeClaims makes the claims of a pod that are missing.
func (c *controller) makeClaims(ctx context.Context, set *appsv1.StatefulSet, p *corev1.Pod) error {
	var failures []error
	for _, claim := range claimsOf(set, p) {
		existing, err := c.claims.Get(set.Namespace, claim.Name)
		if err == nil {
			if existing.DeletionTimestamp != nil {
				failures = append(failures, fmt.Errorf("pvc %s is being deleted", claim.Name))
			}
			continue
		}
		name := claim.Name
		_, err = c.claims.Create(ctx, claim)
		switch {
		case apierrors.IsAlreadyExists(err):
			failures = append(failures, err)
		case err != nil:
			failures = append(failures, fmt.Errorf("failed to create PVC %s: %w", name, err))
			c.events.Eventf(set, corev1.EventTypeWarning, "FailedCreate", "Create Claim %s for Pod %s in StatefulSet %s failed error: %s", name, p.Name, set.Name, err)
		default:
			c.events.Eventf(set, corev1.EventTypeNormal, "SuccessfulCreate", "Create Claim %s Pod %s in StatefulSet %s success", name, p.Name, set.Name)
		}
	}
	return errors.Join(failures...)
}

func (c *controller) writeStatus(ctx context.Context, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus, collisions int32) error {
	status.CollisionCount = &collisions
	_, err := c.sets.MutateStatus(ctx, set.Namespace, set.Name, func(now *appsv1.StatefulSet) error {
		if now.UID != set.UID {
			return nil
		}
		conditions := now.Status.Conditions
		status.ObservedGeneration = max(set.Generation, now.Status.ObservedGeneration)
		now.Status = status
		now.Status.Conditions = conditions
		return nil
	})
	return children.IgnoreNotFound(err)
}
