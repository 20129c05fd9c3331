package job

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Orphans takes the tracking finalizer off pods that no job will count any
// more: theirs has ended, has gone, or has let them go.
func Orphans(r *registry.Registry, index *children.Index) *loop.Controller {
	jobs, pods := registry.Of[*batchv1.Job](r), registry.Of[*corev1.Pod](r)
	return &loop.Controller{
		Name: "job-orphans",
		Sources: []loop.Source{
			loop.Changes(r, func(_, p *corev1.Pod, deleted bool) []loop.Key {
				if deleted || !tracked(p) || !uncounted(jobs, p) {
					return nil
				}
				return []loop.Key{loop.KeyOf(p)}
			}),
			loop.Changes(r, func(_, j *batchv1.Job, deleted bool) (keys []loop.Key) {
				if !deleted && finished(j) == nil {
					return nil
				}
				for _, p := range index.OfOwner(j.UID) {
					if tracked(p) {
						keys = append(keys, loop.KeyOf(p))
					}
				}
				return keys
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			if err != nil || !tracked(p) || !uncounted(jobs, p) {
				return 0, nil
			}
			return 0, untrack(ctx, pods, p)
		},
	}
}

// uncounted tells whether no job will count the pod.
func uncounted(jobs registry.Typed[*batchv1.Job], p *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return true
	}
	if ref.Kind != kind.Kind || ref.APIVersion != batchv1.SchemeGroupVersion.String() {
		return false
	}
	j, err := jobs.Get(p.Namespace, ref.Name)
	if err != nil || j.UID != ref.UID {
		return true
	}
	return finished(j) != nil && !foreign(j)
}
