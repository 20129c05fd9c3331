// Package daemonset keeps one pod of each DaemonSet on every node that may run
// it.
package daemonset

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/clock"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// maxBurst is the most pods that one look at a set makes or deletes.
const maxBurst = 250

// A pod that fails again and again is replaced ever more slowly.
const (
	firstBackoff = time.Second
	maxBackoff   = 15 * time.Minute
)

// Controller gives the DaemonSet controller.
func Controller(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{
		sets: registry.Of[*appsv1.DaemonSet](r), nodes: registry.Of[*corev1.Node](r),
		revisions: children.Revisions{Typed: registry.Of[*appsv1.ControllerRevision](r)},
		pods:      children.NewPods(r, index, events), events: events, now: now,
		failed: flowcontrol.NewBackOff(firstBackoff, maxBackoff),
	}
	c.failed.Clock = backoffClock{clock.RealClock{}, now}
	return &loop.Controller{
		Name:    "daemonset",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*appsv1.DaemonSet](r),
			children.OwnerKeys(r, kind.Kind, func(p *corev1.Pod) (keys []loop.Key) {
				for _, ds := range c.sets.List(p.Namespace, nil) {
					if selectorOf(ds).Matches(labels.Set(p.Labels)) {
						keys = append(keys, loop.KeyOf(ds))
					}
				}
				return keys
			}),
			children.OwnerKeys[*appsv1.ControllerRevision](r, kind.Kind, nil),
			loop.Changes(r, func(old, n *corev1.Node, deleted bool) []loop.Key {
				return concernedBy(c.sets.List("", nil), old, n, deleted)
			}),
		},
		Reconcile: c.reconcile,
	}
}

// backoffClock tells the controller's own time.
type backoffClock struct {
	clock.Clock
	now func() time.Time
}

func (b backoffClock) Now() time.Time                  { return b.now() }
func (b backoffClock) Since(t time.Time) time.Duration { return b.now().Sub(t) }

type controller struct {
	sets      registry.Typed[*appsv1.DaemonSet]
	nodes     registry.Typed[*corev1.Node]
	revisions children.Revisions
	pods      children.Pods
	events    record.EventRecorder
	now       func() time.Time
	failed    *flowcontrol.Backoff // of nodes whose pod failed, by backoffKey
}

func selectorOf(ds *appsv1.DaemonSet) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || selector.Empty() {
		return labels.Nothing()
	}
	return selector
}

// concernedBy gives the sets for which a node has come, gone or changed so that
// it may now run their pods or may no longer.
func concernedBy(sets []*appsv1.DaemonSet, old, n *corev1.Node, deleted bool) []loop.Key {
	if old != nil && !deleted && labels.Equals(old.Labels, n.Labels) && slices.EqualFunc(old.Spec.Taints, n.Spec.Taints, sameTaint) {
		return nil
	}
	var keys []loop.Key
	for _, ds := range sets {
		fit := fitOf(ds)
		should, may := fit.node(n)
		if old != nil && !deleted {
			if shouldBefore, mayBefore := fit.node(old); should == shouldBefore && may == mayBefore {
				continue
			}
		} else if !may {
			continue
		}
		keys = append(keys, loop.KeyOf(ds))
	}
	return keys
}

func sameTaint(a, b corev1.Taint) bool {
	return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	ds, err := c.sets.Get(key.Namespace, key.Name)
	if err != nil || ds.DeletionTimestamp != nil {
		return 0, nil
	}
	if s := ds.Spec.Selector; s != nil && len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0 {
		c.events.Event(ds, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	owner := children.Owner{Object: ds, Kind: kind, Selector: selectorOf(ds)}
	history, err := c.revisions.Settle(ctx, owner, children.Template{
		Spec: &ds.Spec.Template, Annotations: ds.Annotations, Collisions: ds.Status.CollisionCount,
		HashLabel: appsv1.DefaultDaemonSetUniqueLabelKey,
	})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	pods, err := c.pods.Claim(ctx, owner)
	if err != nil {
		return 0, err
	}
	snapshot := Snapshot{
		Set: ds, Nodes: c.nodes.List("", nil), Pods: pods, Hash: history.Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey],
		Backoff: func(node string) time.Duration { return c.backoff(ds, node) },
	}
	plan := Reconcile(c.now(), snapshot)
	failure := c.apply(ctx, snapshot, plan)
	if failure == nil {
		failure = c.revisions.Truncate(ctx, history.Old, ds.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool {
			return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
				return p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
			})
		})
	}
	snapshot.Pods = children.ClaimAll(owner, c.pods.OfOwner(ds.UID)).Mine // as it is after the plan
	status, wait := StatusOf(c.now(), snapshot)
	if err := c.writeStatus(ctx, ds, status, history.Collisions); err != nil {
		return 0, err
	}
	return children.Soonest(plan.Again, wait), failure
}

// backoff is how long a failed pod on node must stay yet.
func (c *controller) backoff(ds *appsv1.DaemonSet, node string) time.Duration {
	key := backoffKey(ds, node)
	if !c.failed.IsInBackOffSinceUpdate(key, c.now()) {
		return 0
	}
	return c.failed.Get(key)
}

// backoffKey has the generation, so that a changed set is tried at once.
func backoffKey(ds *appsv1.DaemonSet, node string) string {
	return fmt.Sprintf("%s/%d/%s", ds.UID, ds.Status.ObservedGeneration, node)
}

func (c *controller) apply(ctx context.Context, s Snapshot, plan Plan) error {
	for _, d := range plan.Delete {
		switch d.Pod.Status.Phase {
		case corev1.PodFailed:
			c.failed.GC()
			c.failed.Next(backoffKey(s.Set, d.Node), c.now())
			c.events.Eventf(s.Set, corev1.EventTypeWarning, "FailedDaemonPod",
				"Found failed daemon pod %s/%s on node %s, will try to kill it", d.Pod.Namespace, d.Pod.Name, d.Node)
		case corev1.PodSucceeded:
			c.events.Eventf(s.Set, corev1.EventTypeNormal, "SucceededDaemonPod",
				"Found succeeded daemon pod %s/%s on node %s, will try to delete it", d.Pod.Namespace, d.Pod.Name, d.Node)
		}
	}
	_, createErr := children.CreateMany(ctx, len(plan.Create), func(ctx context.Context, i int) error {
		_, err := c.pods.MakePod(ctx, s.Set, podFor(s.Set, s.Hash, plan.Create[i]))
		return err
	})
	if apierrors.HasStatusCause(createErr, corev1.NamespaceTerminatingCause) {
		createErr = nil
	}
	doomed := make([]*corev1.Pod, len(plan.Delete))
	for i, d := range plan.Delete {
		doomed[i] = d.Pod
	}
	if err := c.pods.DeletePods(ctx, s.Set, doomed); err != nil {
		return err
	}
	return createErr
}

func (c *controller) writeStatus(ctx context.Context, ds *appsv1.DaemonSet, status appsv1.DaemonSetStatus, collisions int32) error {
	_, err := c.sets.MutateStatus(ctx, ds.Namespace, ds.Name, func(now *appsv1.DaemonSet) error {
		if now.UID != ds.UID {
			return nil
		}
		conditions := now.Status.Conditions
		was := now.Status.CollisionCount
		status.ObservedGeneration = max(ds.Generation, now.Status.ObservedGeneration)
		now.Status = status
		now.Status.Conditions, now.Status.CollisionCount = conditions, was
		if collisions > 0 {
			now.Status.CollisionCount = &collisions
		}
		return nil
	})
	return children.IgnoreNotFound(err)
}
