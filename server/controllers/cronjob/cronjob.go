// Package cronjob starts the jobs of CronJobs when they are due.
package cronjob

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

var kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

// Controller gives the CronJob controller. Between the scheduled times it does
// nothing: each look says when the next one is.
func Controller(r *registry.Registry, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &controller{cronJobs: registry.Of[*batchv1.CronJob](r), jobs: registry.Of[*batchv1.Job](r), events: events, now: now}
	return &loop.Controller{
		Name:    "cronjob",
		Workers: 4,
		Start: func(ctx context.Context, enqueue func(loop.Key, time.Duration)) error {
			return c.cronJobs.Watch(ctx, func(old, cj *batchv1.CronJob, deleted bool) {
				if !deleted {
					enqueue(loop.KeyOf(cj), c.delay(old, cj))
				}
			}, nil)
		},
		Sources:   []loop.Source{children.OwnerKeys[*batchv1.Job](r, kind.Kind, nil)},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	cronJobs registry.Typed[*batchv1.CronJob]
	jobs     registry.Typed[*batchv1.Job]
	events   record.EventRecorder
	now      func() time.Time
}

// delay keeps a changed schedule from starting what it would have missed.
func (c *controller) delay(old, cj *batchv1.CronJob) time.Duration {
	if old == nil || specOf(old) == specOf(cj) {
		return 0
	}
	schedule, err := parse(specOf(cj))
	if err != nil {
		return 0
	}
	return max(0, untilNext(cj, c.now(), schedule))
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	cj, err := c.cronJobs.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	s := Snapshot{CronJob: cj, Exists: func(name string) bool {
		_, err := c.jobs.Get(cj.Namespace, name)
		return err == nil
	}}
	for _, j := range c.jobs.List(key.Namespace, nil) {
		if metav1.IsControlledBy(j, cj) {
			s.Jobs = append(s.Jobs, j)
		}
	}
	plan := Reconcile(c.now(), s)
	return plan.Again, c.apply(ctx, cj, plan)
}

func (c *controller) apply(ctx context.Context, cj *batchv1.CronJob, plan Plan) error {
	for _, e := range plan.Events {
		c.events.Event(cj, e.Type, e.Reason, e.Message)
	}
	background := metav1.DeletePropagationBackground
	for _, j := range plan.Delete {
		err := c.jobs.Delete(ctx, j.Namespace, j.Name, metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &j.UID}})
		if children.IgnoreNotFound(err) != nil {
			c.events.Eventf(cj, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
			return err
		}
		c.events.Eventf(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", j.Name)
	}
	var failure error
	if plan.Create != nil {
		var j *batchv1.Job
		if j, failure = c.create(ctx, cj, plan.Create); j != nil {
			plan.Status.Active = append(plan.Status.Active, corev1.ObjectReference{
				APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job",
				Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion,
			})
			plan.Status.LastScheduleTime = &metav1.Time{Time: plan.Due}
		}
	}
	changed := cj.DeepCopy()
	changed.Status = plan.Status
	if _, err := c.cronJobs.UpdateStatus(ctx, changed); children.IgnoreNotFound(err) != nil {
		return err
	}
	return failure
}

// create makes the job; nil when it is another's or cannot be made now.
func (c *controller) create(ctx context.Context, cj *batchv1.CronJob, j *batchv1.Job) (*batchv1.Job, error) {
	name := j.Name
	created, err := c.jobs.Create(ctx, j)
	switch {
	case apierrors.IsAlreadyExists(err):
		// Made by a look whose status was never written, or by somebody else.
		existing, err := c.jobs.Get(cj.Namespace, name)
		if err != nil || !metav1.IsControlledBy(existing, cj) {
			return nil, nil
		}
		return existing, nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil, nil
	case err != nil:
		c.events.Eventf(cj, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return nil, err
	}
	c.events.Eventf(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", created.Name)
	return created, nil
}
