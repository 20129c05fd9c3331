package garbage

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// FinishedJobs deletes jobs whose ttlSecondsAfterFinished has passed.
func FinishedJobs(r *registry.Registry, now func() time.Time) *loop.Controller {
	jobs := registry.Of[*batchv1.Job](r)
	return &loop.Controller{
		Name:    "ttl-after-finished",
		Sources: []loop.Source{loop.Each[*batchv1.Job](r)},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			job, err := jobs.Get(key.Namespace, key.Name)
			if err != nil {
				return 0, nil
			}
			due, ok := expiry(job)
			if !ok {
				return 0, nil
			}
			if wait := due.Sub(now()); wait > 0 {
				return wait, nil
			}
			policy := metav1.DeletePropagationForeground
			err = jobs.Delete(ctx, job.Namespace, job.Name, metav1.DeleteOptions{
				PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &job.UID},
			})
			if apierrors.IsNotFound(err) {
				return 0, nil
			}
			return 0, err
		},
	}
}

// expiry is when a finished job is to be deleted; false when it is not.
func expiry(job *batchv1.Job) (time.Time, bool) {
	if job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil {
		return time.Time{}, false
	}
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second), true
		}
	}
	return time.Time{}, false
}
