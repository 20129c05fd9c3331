package registry

import (
	"context"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Get reads one object; the result is shared.
func (r *Registry) Get(ctx context.Context, res *Resource, ns, name string, opts *metav1.GetOptions) (Object, error) {
	e := r.entryOf(res)
	version := ""
	if opts != nil {
		version = opts.ResourceVersion
	}
	floor, err := parseVersion(version)
	if err != nil {
		return nil, err
	}
	if err := r.catchUp(ctx, version, floor); err != nil {
		return nil, err
	}
	if e.Report != nil {
		return e.reported(ctx, r, name)
	}
	obj := r.peek(e.key(ns, name))
	if obj == nil {
		return nil, apierrors.NewNotFound(e.gr, name)
	}
	return e.serve(obj)
}

func (e *entry) reported(ctx context.Context, r *Registry, name string) (Object, error) {
	for _, obj := range e.Report(ctx, r) {
		if obj.GetName() == name {
			return obj, nil
		}
	}
	return nil, apierrors.NewNotFound(e.gr, name)
}

// Current waits until memory has every acknowledged write; it fails when the
// store cannot tell.
func (r *Registry) Current(ctx context.Context) error { return r.catchUp(ctx, "", 0) }

// GetProjection reads a projected subresource (scale).
func (r *Registry) GetProjection(ctx context.Context, res *Resource, sub *Subresource, ns, name string, opts *metav1.GetOptions) (runtime.Object, error) {
	obj, err := r.Get(ctx, res, ns, name, opts)
	if err != nil {
		return nil, err
	}
	return project(sub, obj)
}

// peek gives the stored object at key from memory, nil when absent.
func (r *Registry) peek(key string) Object {
	entry, _ := r.store.Get(key)
	if entry == nil {
		return nil
	}
	return entry.Object.(Object)
}

// parseVersion reads a resourceVersion parameter; "" and "0" are 0.
func parseVersion(version string) (int64, error) {
	if version == "" || version == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(version, 10, 63)
	if err != nil {
		_, err = strconv.ParseUint(version, 10, 64)
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v",
			field.ErrorList{field.Invalid(field.NewPath("resourceVersion"), version, fmt.Sprint(err))}.ToAggregate()))
	}
	return int64(n), nil
}

// catchUp makes memory as new as a read wants it: "0" takes it as it is, ""
// wants all acknowledged writes, a number at least that revision.
func (r *Registry) catchUp(ctx context.Context, version string, floor int64) error {
	if version == "0" || floor > 0 && r.store.Revision() >= floor {
		return nil
	}
	reached, err := r.store.Sync(ctx)
	if err != nil {
		return storeFailure(err)
	}
	// A revision that anyone has been told of is reached after Sync.
	if floor > reached {
		return tooLarge(floor, reached)
	}
	return nil
}

// tooLarge is the 504 for a revision that has not happened yet.
func tooLarge(wanted, current int64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", wanted, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}
