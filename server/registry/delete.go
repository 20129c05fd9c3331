package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/store"
)

// Delete removes an object, or marks it when finalizers or a grace period hold
// it. It gives the object as it stands afterwards; gone tells that it is no
// longer there.
func (r *Registry) Delete(ctx context.Context, res *Resource, ns, name string, opts *metav1.DeleteOptions) (obj Object, gone bool, err error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	if errs := metavalidation.ValidateDeleteOptions(opts); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
	}
	out, gone, err := r.delete(ctx, e.storage, ns, name, opts)
	if err != nil {
		return nil, false, err
	}
	out, err = e.serve(out)
	return out, gone, err
}

// delete retries until nobody else writes in between; see rewrite.
func (r *Registry) delete(ctx context.Context, e *entry, ns, name string, opts *metav1.DeleteOptions) (Object, bool, error) {
	key := e.key(ns, name)
	current, _ := r.read(key)
	synced := false
	for {
		out, gone, err := r.deleteOnce(ctx, e, key, name, current, opts.DeepCopy())
		// What was not written has not been held against the newest state yet.
		stale := err == nil && !gone && !synced && out == current.Object.(Object)
		if err == nil && !stale || ctx.Err() != nil {
			return out, gone, err
		}
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			current = conflict.Current
			continue
		}
		if synced || unwritten(err) {
			return nil, false, err
		}
		if _, failed := r.store.Sync(ctx); failed != nil {
			return nil, false, storeFailure(failed)
		}
		synced = true
		fresh, _ := r.store.Get(key)
		if sameEntry(current, fresh) {
			return out, gone, err
		}
		current = fresh
	}
}

func (r *Registry) deleteOnce(ctx context.Context, e *entry, key, name string, current *store.Entry, opts *metav1.DeleteOptions) (Object, bool, error) {
	if current == nil {
		return nil, false, apierrors.NewNotFound(e.gr, name)
	}
	old := current.Object.(Object)
	if err := e.checkPreconditions(old, opts.Preconditions); err != nil {
		return nil, false, err
	}
	dryRun := isDryRun(opts.DryRun)
	if err := r.Admit(ctx, &Attempt{Resource: e.Resource, Operation: OperationDelete, Namespace: old.GetNamespace(),
		Name: old.GetName(), Old: old, DryRun: dryRun}); err != nil {
		return nil, false, err
	}
	marked, fate, err := r.mark(ctx, e, old, opts)
	if err != nil {
		return nil, false, err
	}
	switch fate {
	case unchanged:
		return old, false, nil
	case stays:
		out, err := r.put(ctx, e, key, marked, old, current.ModRevision, dryRun)
		return out, false, err
	}
	if marked != nil && old.GetDeletionTimestamp() == nil && !dryRun {
		err = r.markAndRemove(ctx, e, key, marked, old, current.ModRevision)
		return marked, true, err
	}
	return old, true, r.remove(ctx, e, key, old, current.ModRevision, dryRun)
}

func (e *entry) checkPreconditions(obj Object, want *metav1.Preconditions) error {
	if want == nil {
		return nil
	}
	kind := schema.GroupResource{Group: e.Group, Resource: e.Kind}
	if want.UID != nil && *want.UID != obj.GetUID() {
		return apierrors.NewConflict(kind, obj.GetName(), fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *want.UID, obj.GetUID()))
	}
	if want.ResourceVersion != nil && *want.ResourceVersion != obj.GetResourceVersion() {
		return apierrors.NewConflict(kind, obj.GetName(), fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *want.ResourceVersion, obj.GetResourceVersion()))
	}
	return nil
}

// fate is what a delete does to its object.
type fate int

const (
	vanishes  fate = iota
	stays          // marked, waiting for finalizers, its grace period or its own release
	unchanged      // a deletion with no longer grace period is already under way
)

// mark decides the fate of old and gives the marked private copy if there is
// anything to mark.
func (r *Registry) mark(ctx context.Context, e *entry, old Object, opts *metav1.DeleteOptions) (Object, fate, error) {
	obj, graceful, pending, err := r.beginGrace(ctx, e, old, opts)
	if err != nil {
		return nil, 0, err
	}
	if pending {
		return nil, unchanged, nil
	}
	finalizers := e.deletionFinalizers(old, opts)
	held := e.held(old)
	if !graceful && len(finalizers) == 0 && !held {
		return nil, vanishes, nil
	}
	if obj == nil {
		obj = old.DeepCopyObject().(Object)
	}
	obj.SetFinalizers(finalizers)
	if graceful {
		grace := obj.GetDeletionGracePeriodSeconds()
		if len(finalizers) == 0 && !held && grace != nil && *grace == 0 {
			return obj, vanishes, nil
		}
		return obj, stays, nil
	}
	r.markDeleting(obj, held)
	return obj, stays, nil
}

// markDeleting sets the deletion time of an object that only waits for
// finalizers. A held one has no grace period, as namespaces upstream.
func (r *Registry) markDeleting(obj Object, held bool) {
	now := r.now()
	deleted := obj.GetDeletionTimestamp()
	if deleted == nil && obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	if deleted == nil || deleted.After(now) {
		obj.SetDeletionTimestamp(seconds(now))
	}
	if !held {
		obj.SetDeletionGracePeriodSeconds(new(int64))
	}
}

// seconds gives t as the wire shows it.
func seconds(t time.Time) *metav1.Time {
	s := metav1.Unix(t.Unix(), 0)
	return &s
}

// beginGrace applies the grace period. obj is a private copy when one was
// made; pending means that nothing has to be done beyond what is under way.
func (r *Registry) beginGrace(ctx context.Context, e *entry, old Object, opts *metav1.DeleteOptions) (obj Object, graceful, pending bool, err error) {
	if p := opts.GracePeriodSeconds; p != nil && *p < 0 {
		*p = 1
	}
	if e.BeginDelete == nil {
		return nil, false, false, nil
	}
	if old.GetDeletionTimestamp() != nil && old.GetDeletionGracePeriodSeconds() != nil {
		return r.shortenGrace(old, opts)
	}
	obj = old.DeepCopyObject().(Object)
	graceful, err = e.BeginDelete(ctx, r, obj, opts)
	if err != nil {
		return nil, false, false, err
	}
	if !graceful {
		return obj, false, false, nil
	}
	if old.GetDeletionTimestamp() != nil {
		return nil, false, true, nil // it waits for its own release already
	}
	deadline := r.now()
	if p := opts.GracePeriodSeconds; p != nil {
		deadline = deadline.Add(time.Duration(*p) * time.Second)
		obj.SetDeletionGracePeriodSeconds(p)
	}
	obj.SetDeletionTimestamp(seconds(deadline))
	if obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	return obj, true, false, nil
}

// shortenGrace handles a further delete of an object whose period is running:
// it can be made shorter but not longer.
func (r *Registry) shortenGrace(old Object, opts *metav1.DeleteOptions) (obj Object, graceful, pending bool, err error) {
	running := *old.GetDeletionGracePeriodSeconds()
	if running == 0 {
		return nil, false, false, nil
	}
	if opts.GracePeriodSeconds == nil || *opts.GracePeriodSeconds >= running {
		return nil, false, true, nil
	}
	period := *opts.GracePeriodSeconds
	now := r.now()
	deadline := old.GetDeletionTimestamp().Add(time.Duration(period-running) * time.Second)
	if deadline.Before(now) {
		deadline = now
		if period != 0 {
			period = 1
		}
	}
	obj = old.DeepCopyObject().(Object)
	obj.SetDeletionTimestamp(seconds(deadline))
	obj.SetDeletionGracePeriodSeconds(&period)
	return obj, true, false, nil
}

// deletionFinalizers gives the finalizers old must have once it is deleted with
// opts: the garbage collector's own ones follow the propagation policy.
func (e *entry) deletionFinalizers(old Object, opts *metav1.DeleteOptions) []string {
	have := old.GetFinalizers()
	policy := e.propagation(have, opts)
	var out []string
	for _, f := range have {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			out = append(out, f)
		}
	}
	switch policy {
	case metav1.DeletePropagationOrphan:
		out = append(out, metav1.FinalizerOrphanDependents)
	case metav1.DeletePropagationForeground:
		out = append(out, metav1.FinalizerDeleteDependents)
	}
	return out
}

// propagation picks, in this order: orphanDependents, propagationPolicy, a
// finalizer already there, the resource's default.
func (e *entry) propagation(finalizers []string, opts *metav1.DeleteOptions) metav1.DeletionPropagation {
	switch {
	case opts.OrphanDependents != nil && *opts.OrphanDependents:
		return metav1.DeletePropagationOrphan
	case opts.OrphanDependents != nil:
		return metav1.DeletePropagationBackground
	case opts.PropagationPolicy != nil:
		return *opts.PropagationPolicy
	}
	for _, f := range finalizers {
		switch f {
		case metav1.FinalizerOrphanDependents:
			return metav1.DeletePropagationOrphan
		case metav1.FinalizerDeleteDependents:
			return metav1.DeletePropagationForeground
		}
	}
	return e.DefaultPropagation
}

// remove deletes the key and gives back the object's claims.
func (r *Registry) remove(ctx context.Context, e *entry, key string, old Object, expect int64, dryRun bool) error {
	ops := append([]store.Op{{Key: key, Expect: expect}}, e.claimOps(key, nil, old)...)
	_, err := r.commit(ctx, ops, dryRun)
	return err
}

// markAndRemove shows watchers the deletion time before the object vanishes:
// both in one transaction.
func (r *Registry) markAndRemove(ctx context.Context, e *entry, key string, marked, old Object, expect int64) error {
	value, err := r.codec.encode(e, key, marked)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	ops := []store.Op{{Key: key, Value: value, Object: marked, Expect: expect}, {Key: key, Expect: store.Any}}
	_, err = r.commit(ctx, append(ops, e.claimOps(key, nil, old)...), false)
	return err
}
