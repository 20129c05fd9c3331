package registry

import (
	"context"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// collectionWorkers delete in parallel, so that they share the store's group commits.
const collectionWorkers = 32

// DeleteCollection deletes what a list with these options gives; the result is
// that list.
func (r *Registry) DeleteCollection(ctx context.Context, res *Resource, sel Selection, list *metav1.ListOptions, opts *metav1.DeleteOptions) (*ListResult, error) {
	found, err := r.List(ctx, res, sel, list)
	if err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(collectionWorkers)
	for _, item := range found.Items {
		group.Go(func() error {
			_, _, err := r.Delete(ctx, res, item.GetNamespace(), item.GetName(), opts)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return found, nil
}
