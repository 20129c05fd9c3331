// Package job runs the pods of Jobs to completion and counts each of their ends
// exactly once.
package job

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

var kind = batchv1.SchemeGroupVersion.WithKind("Job")

// Controller gives the job controller.
func Controller(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{
		jobs: registry.Of[*batchv1.Job](r), pods: children.NewPods(r, index, events), events: events, now: now,
		failures: memory{jobs: map[types.UID]Failures{}},
	}
	return &loop.Controller{
		Name:    "job",
		Workers: 8,
		Sources: []loop.Source{
			loop.Changes(r, func(_, j *batchv1.Job, deleted bool) []loop.Key {
				if deleted || finished(j) != nil {
					c.failures.set(j.UID, Failures{})
					return nil
				}
				return []loop.Key{loop.KeyOf(j)}
			}),
			children.OwnerKeys(r, kind.Kind, func(p *corev1.Pod) (keys []loop.Key) {
				for _, j := range c.jobs.List(p.Namespace, nil) {
					if ownerOf(j).Selector.Matches(labels.Set(p.Labels)) {
						keys = append(keys, loop.KeyOf(j))
					}
				}
				return keys
			}),
		},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	jobs     registry.Typed[*batchv1.Job]
	pods     children.Pods
	events   record.EventRecorder
	now      func() time.Time
	failures memory
}

func ownerOf(j *batchv1.Job) children.Owner {
	selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
	if err != nil || selector.Empty() {
		selector = labels.Nothing()
	}
	return children.Owner{Object: j, Kind: kind, Selector: selector, Finalizer: batchv1.JobTrackingFinalizer}
}

// finished is the condition by which a job has ended, nil when it has not.
func finished(j *batchv1.Job) *batchv1.JobCondition {
	if c := holds(j.Status.Conditions, batchv1.JobComplete); c != nil {
		return c
	}
	return holds(j.Status.Conditions, batchv1.JobFailed)
}

// foreign tells whether another controller runs the job.
func foreign(j *batchv1.Job) bool {
	return j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	j, err := c.jobs.Get(key.Namespace, key.Name)
	if err != nil || finished(j) != nil || foreign(j) {
		return 0, nil
	}
	if m := j.Spec.CompletionMode; m != nil && *m != batchv1.NonIndexedCompletion && *m != batchv1.IndexedCompletion {
		c.events.Event(j, corev1.EventTypeWarning, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return 0, nil
	}
	pods, err := c.pods.Claim(ctx, ownerOf(j))
	if err != nil {
		return 0, err
	}
	plan := Reconcile(c.now(), Snapshot{Job: j, Pods: pods, Failures: c.failures.get(j.UID)})
	return plan.Again, c.apply(ctx, j, plan)
}

func (c *controller) apply(ctx context.Context, j *batchv1.Job, plan Plan) error {
	if plan.Forget {
		if err := c.untrack(ctx, plan.Delete); err != nil {
			return err
		}
	}
	if err := c.pods.DeletePods(ctx, j, plan.Delete); err != nil {
		return err
	}
	made, failure := children.CreateMany(ctx, len(plan.Create), func(ctx context.Context, i int) error {
		_, err := c.pods.MakePod(ctx, j, plan.Create[i])
		return err
	})
	plan.Status.Active -= int32(len(plan.Create) - made)
	for _, e := range plan.Events {
		c.events.Event(j, e.Type, e.Reason, e.Message)
	}
	written, err := c.writeStatus(ctx, j, &plan.Status)
	if err != nil {
		return errors.Join(failure, err)
	}
	c.failures.set(j.UID, plan.Failures)
	if err := errors.Join(c.account(ctx, written, plan), failure); !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err
	}
	return nil
}

// account takes the finalizers off pods that the stored status accounts for,
// counts them, and finishes the job when that was all.
func (c *controller) account(ctx context.Context, j *batchv1.Job, plan Plan) error {
	failure := c.untrack(ctx, plan.Untrack)
	status := j.Status.DeepCopy()
	Settle(status, c.pods.OfOwner(j.UID))
	ended := failure == nil && !plan.Partial && Enact(c.now(), status, plan.Finish)
	written, err := c.writeStatus(ctx, j, status)
	if err == nil && ended {
		c.tellFinished(written, plan.Finish)
	}
	return errors.Join(failure, err)
}

func (c *controller) writeStatus(ctx context.Context, j *batchv1.Job, status *batchv1.JobStatus) (*batchv1.Job, error) {
	changed := j.DeepCopy()
	changed.Status = *status
	written, err := c.jobs.UpdateStatus(ctx, changed)
	if apierrors.IsNotFound(err) {
		return j, nil
	}
	return written, err
}

func (c *controller) tellFinished(j *batchv1.Job, end *batchv1.JobCondition) {
	if end.Type != batchv1.JobComplete {
		c.events.Event(j, corev1.EventTypeWarning, end.Reason, end.Message)
		return
	}
	if j.Spec.Completions != nil && j.Status.Succeeded > *j.Spec.Completions {
		c.events.Event(j, corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	c.events.Event(j, corev1.EventTypeNormal, "Completed", "Job completed")
}

// untrack takes the tracking finalizer off pods.
func (c *controller) untrack(ctx context.Context, pods []*corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(16)
	for _, p := range pods {
		group.Go(func() error { return untrack(ctx, c.pods.Typed, p) })
	}
	return group.Wait()
}

func untrack(ctx context.Context, pods registry.Typed[*corev1.Pod], p *corev1.Pod) error {
	_, err := pods.Mutate(ctx, p.Namespace, p.Name, func(now *corev1.Pod) error {
		if now.UID == p.UID {
			children.DropFinalizer(now, batchv1.JobTrackingFinalizer)
		}
		return nil
	})
	return children.IgnoreNotFound(err)
}
