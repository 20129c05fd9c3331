package children

import (
	"context"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"

	"orch/server/registry"
)

// Pods finds, makes and deletes pods for owners, with upstream's events.
type Pods struct {
	registry.Typed[*corev1.Pod]
	*Index
	Events record.EventRecorder
}

// NewPods gives the pods of a registry by way of an index, which controllers share.
func NewPods(r *registry.Registry, index *Index, events record.EventRecorder) Pods {
	return Pods{Typed: registry.Of[*corev1.Pod](r), Index: index, Events: events}
}

// Claim gives the pods of owner, after those that match were adopted and those
// that match no more released.
func (p Pods) Claim(ctx context.Context, owner Owner) ([]*corev1.Pod, error) {
	candidates := append(p.OfOwner(owner.GetUID()), p.Orphans(owner.GetNamespace())...)
	return Apply(ctx, owner, p.Typed, ClaimAll(owner, candidates))
}

// CreateMany calls create for 0 … n-1 in batches that double as long as all
// goes well, so that a quota or a bad template fails few times and not n. It
// gives the number of successes.
func CreateMany(ctx context.Context, n int, create func(ctx context.Context, i int) error) (int, error) {
	done := 0
	for size := 1; done < n; size *= 2 {
		batch := min(size, n-done)
		var group errgroup.Group
		failed := make([]bool, batch)
		for i := range batch {
			group.Go(func() error {
				err := create(ctx, done+i)
				failed[i] = err != nil
				return err
			})
		}
		err := group.Wait()
		for _, f := range failed {
			if !f {
				done++
			}
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// MakePod stores a new pod of owner.
func (p Pods) MakePod(ctx context.Context, owner runtime.Object, pod *corev1.Pod) (*corev1.Pod, error) {
	created, err := p.Create(ctx, pod)
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			p.Events.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return nil, err
	}
	p.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", created.Name)
	return created, nil
}

// DeletePods deletes pods side by side.
func (p Pods) DeletePods(ctx context.Context, owner runtime.Object, pods []*corev1.Pod) error {
	var group errgroup.Group
	group.SetLimit(16)
	for _, pod := range pods {
		group.Go(func() error {
			err := p.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
			switch {
			case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
				return nil
			case err != nil:
				p.Events.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
				return err
			}
			p.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
			return nil
		})
	}
	return group.Wait()
}
