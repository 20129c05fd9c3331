package registry

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/store"
)

// Rider is another object that changes in the same write as the one that is
// being created: both or neither. Object carries the resourceVersion that it was
// read at, and belongs to the registry from then on.
type Rider struct {
	Resource *Resource
	Object   Object
}

// Ride makes what riders gives part of the creation. It is called just before
// each try to write, for others may change the riders meanwhile; its error
// refuses the creation. Only creations that are no dry run take riders.
func (a *Attempt) Ride(riders func() ([]Rider, error)) { a.riders = append(a.riders, riders) }

// errRiderMoved says that another write has changed a rider.
var errRiderMoved = errors.New("registry: a rider has changed")

// insertWithRiders is insertOnce until nobody else changes the riders meanwhile.
func (r *Registry) insertWithRiders(ctx context.Context, e *entry, obj Object, a *Attempt) (Object, error) {
	for {
		ops, err := r.riderOps(a)
		if err != nil {
			return nil, err
		}
		out, err := r.insertOnce(ctx, e, obj, a.DryRun, ops)
		if !errors.Is(err, errRiderMoved) {
			return out, err
		}
		// What made the write fail was applied here before the failure was told.
		if ctx.Err() != nil {
			return nil, storeFailure(context.Cause(ctx))
		}
	}
}

func (r *Registry) riderOps(a *Attempt) ([]store.Op, error) {
	if a.DryRun {
		return nil, nil
	}
	var ops []store.Op
	for _, riders := range a.riders {
		list, err := riders()
		if err != nil {
			return nil, a.refusal(err)
		}
		for _, rider := range list {
			op, err := r.riderOp(rider)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			ops = append(ops, op)
		}
	}
	return ops, nil
}

func (r *Registry) riderOp(rider Rider) (store.Op, error) {
	e := r.entryOf(rider.Resource).storage
	expect, err := strconv.ParseInt(rider.Object.GetResourceVersion(), 10, 64)
	if err != nil {
		return store.Op{}, fmt.Errorf("version of %s %s: %w", e.Plural, rider.Object.GetName(), err)
	}
	key := e.key(rider.Object.GetNamespace(), rider.Object.GetName())
	value, err := r.codec.encode(e, key, rider.Object)
	return store.Op{Key: key, Value: value, Object: rider.Object, Expect: expect}, err
}

// riderMoved tells whether err is that one of the riders has changed.
func riderMoved(err error, riders []store.Op) bool {
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) {
		return false
	}
	for _, op := range riders {
		if op.Key == conflict.Key {
			return true
		}
	}
	return false
}
