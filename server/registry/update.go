package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/store"
)

// optimisticLock is the message of a 409 whose resourceVersion is stale.
const optimisticLock = "the object has been modified; please apply your changes to the latest version and try again"

// rewrite is one request to change an object: PUT, PATCH, apply or Mutate.
type rewrite struct {
	e           *entry // the served form that next works in
	subresource string
	ns, name    string
	manager     string
	dryRun      bool
	mayCreate   bool      // an absent object is created
	uid         types.UID // when set, the object must have it
	managed     bool      // next maintains managedFields itself
	applied     bool      // by server-side apply

	// next gives the wanted object in e's form, private to the caller. current is
	// shared and nil when the object does not exist. It may be called again.
	next func(ctx context.Context, current Object) (Object, error)
	// unconditional: what next gives follows from current, so a concurrent change
	// means to try again and not a conflict.
	unconditional bool
	spent         bool // what next gave was changed since, so it cannot be used again
}

// Update replaces an object, or one subresource view of it ("" the whole).
// body belongs to the registry from here on. created tells that a PUT made it.
func (r *Registry) Update(ctx context.Context, res *Resource, subresource, ns, name string, body runtime.Object, opts *metav1.UpdateOptions) (obj runtime.Object, created bool, err error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.UpdateOptions{}
	}
	rw := &rewrite{e: e, subresource: subresource, ns: ns, name: name,
		manager: fieldManager(ctx, opts.FieldManager), dryRun: isDryRun(opts.DryRun)}
	if sub := e.views[subresource]; sub != nil && sub.Project != nil {
		return r.updateProjection(ctx, rw, sub, body)
	}
	wanted, ok := body.(Object)
	if !ok {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("the object provided is not a %s", e.Kind))
	}
	if err := e.settleNamespace(wanted, ns); err != nil {
		return nil, false, err
	}
	if err := checkName(wanted, ns, name); err != nil {
		return nil, false, err
	}
	dedupOwners(ctx, wanted, false)
	e.setKind(wanted)
	if e.Default != nil {
		e.Default(wanted)
	}
	rw.uid = wanted.GetUID()
	rw.mayCreate = e.storage.CreateOnUpdate && subresource == ""
	rw.next = func(context.Context, Object) (Object, error) {
		if rw.spent {
			return nil, errBodyUsed
		}
		return wanted, nil
	}
	if e.storage.UnconditionalUpdate && wanted.GetResourceVersion() == "" {
		pristine := wanted
		rw.next = func(context.Context, Object) (Object, error) { return pristine.DeepCopyObject().(Object), nil }
		rw.unconditional = true
	}
	return r.result(r.rewrite(ctx, rw))(e)
}

// errBodyUsed marks the second attempt of a write that carried a resourceVersion: it lost a race.
var errBodyUsed = errors.New("registry: body already used")

// result converts what rewrite gives into the served form.
func (r *Registry) result(out Object, created bool, err error) func(*entry) (runtime.Object, bool, error) {
	return func(e *entry) (runtime.Object, bool, error) {
		if err != nil {
			return nil, false, err
		}
		served, err := e.serve(out)
		return served, created, err
	}
}

// Mutate runs change on a private copy and stores it, again on conflict; an
// unchanged object is not written. The object has res's form.
func (r *Registry) Mutate(ctx context.Context, res *Resource, subresource, ns, name string, change func(Object) error) (Object, error) {
	e := r.entryOf(res)
	rw := &rewrite{e: e, subresource: subresource, ns: ns, name: name, manager: fieldManager(ctx, ""), unconditional: true}
	rw.next = func(_ context.Context, current Object) (Object, error) {
		obj := current.DeepCopyObject().(Object)
		if err := change(obj); err != nil {
			return nil, err
		}
		obj.SetResourceVersion(current.GetResourceVersion())
		return obj, nil
	}
	out, _, err := r.rewrite(ctx, rw)
	if err != nil {
		return nil, err
	}
	return e.serve(out)
}

// rewrite reads, asks next, checks and writes, until nobody else has written in
// between. It reads from memory first; what fails then is tried again on a
// read that is known to be current.
func (r *Registry) rewrite(ctx context.Context, rw *rewrite) (Object, bool, error) {
	key := rw.e.key(rw.ns, rw.name)
	current, _ := r.read(key)
	synced := false
	for {
		out, created, err := r.rewriteOnce(ctx, rw, key, current)
		// What was not written has not been held against the newest state yet.
		stale := err == nil && !synced && current != nil && out == current.Object.(Object)
		if err == nil && !stale {
			return out, created, nil
		}
		if ctx.Err() != nil {
			return nil, false, err
		}
		var conflict *store.ConflictError
		switch {
		case errors.As(err, &conflict):
			current = conflict.Current
			continue
		case errors.Is(err, errBodyUsed):
			return nil, false, rw.lostRace(current)
		case synced || unwritten(err):
			return nil, false, err
		}
		if _, failed := r.store.Sync(ctx); failed != nil {
			return nil, false, storeFailure(failed)
		}
		synced = true
		fresh, _ := r.store.Get(key)
		if sameEntry(current, fresh) {
			return out, created, err
		}
		current = fresh
	}
}

func sameEntry(a, b *store.Entry) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ModRevision == b.ModRevision
}

// lostRace words the failure of a write whose object changed under it.
func (rw *rewrite) lostRace(current *store.Entry) error {
	if current == nil {
		return apierrors.NewNotFound(rw.e.storage.gr, rw.name)
	}
	return apierrors.NewConflict(rw.e.storage.gr, rw.name, errors.New(optimisticLock))
}

func (r *Registry) rewriteOnce(ctx context.Context, rw *rewrite, key string, current *store.Entry) (Object, bool, error) {
	if current == nil {
		return r.rewriteAbsent(ctx, rw)
	}
	old := current.Object.(Object)
	if rw.uid != "" && rw.uid != old.GetUID() {
		return nil, false, rw.uidMismatch(rw.uid, old.GetUID())
	}
	served, err := rw.e.serve(old)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	obj, err := rw.next(ctx, served)
	if err != nil {
		return nil, false, err
	}
	if err := rw.checkVersion(obj, old); err != nil {
		return nil, false, err
	}
	if obj, err = r.prepareRewrite(ctx, rw, obj, served, old); err != nil {
		return nil, false, err
	}
	out, err := r.replace(ctx, rw, key, obj, current)
	return out, false, err
}

// rewriteAbsent creates the object if the request may.
func (r *Registry) rewriteAbsent(ctx context.Context, rw *rewrite) (Object, bool, error) {
	if !rw.mayCreate {
		return nil, false, apierrors.NewNotFound(rw.e.gr, rw.name)
	}
	obj, err := rw.next(ctx, nil)
	if err != nil {
		return nil, false, err
	}
	if obj.GetUID() != "" {
		return nil, false, apierrors.NewConflict(rw.e.gr, rw.name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", obj.GetUID()))
	}
	wipeSystemFields(obj)
	obj.SetResourceVersion("") // of an object that is no more: nothing to hold it against
	var managed []metav1.ManagedFieldsEntry
	if rw.managed {
		managed = obj.GetManagedFields()
	}
	out, err := r.create(ctx, rw.e, obj, managed, rw.manager, rw.dryRun)
	if apierrors.IsAlreadyExists(err) { // somebody was quicker: now it is an update
		if current, _ := r.store.Get(rw.e.key(rw.ns, rw.name)); current != nil {
			return nil, false, &store.ConflictError{Key: rw.e.key(rw.ns, rw.name), Current: current}
		}
	}
	return out, true, err
}

// checkVersion holds the resourceVersion that came with obj against old's.
func (rw *rewrite) checkVersion(obj, old Object) error {
	st := rw.e.storage
	switch have := obj.GetResourceVersion(); {
	case have == "" || have == "0":
		if !rw.unconditional && !st.UnconditionalUpdate {
			return st.invalid(rw.name, field.ErrorList{field.Invalid(metadataPath.Child("resourceVersion"), uint64(0), "must be specified for an update")})
		}
		obj.SetResourceVersion(old.GetResourceVersion())
	case have != old.GetResourceVersion():
		return apierrors.NewConflict(st.gr, rw.name, errors.New(optimisticLock))
	}
	return nil
}

// prepareRewrite brings obj from what the client wants to what may be written:
// default, view, managed fields, admission, metadata rules, validation. It
// gives the stored form.
func (r *Registry) prepareRewrite(ctx context.Context, rw *rewrite, obj, served, old Object) (Object, error) {
	e, st := rw.e, rw.e.storage
	rw.spent = true
	e.setKind(obj)
	if e.Default != nil {
		e.Default(obj)
	}
	view := rw.view()
	if view != nil && view.Prepare != nil && e == st {
		view.Prepare(ctx, obj, old) // so that no field is claimed that the view cannot write
	}
	if !rw.managed {
		r.manageUpdate(e, rw.subresource, obj, served, rw.manager)
	}
	kept, err := e.keep(obj)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if e != st && st.Default != nil {
		st.Default(kept)
	}
	if err := r.Admit(ctx, &Attempt{Resource: st.Resource, Subresource: rw.subresource, Operation: OperationUpdate,
		Namespace: rw.ns, Name: rw.name, Object: kept, Old: old, DryRun: rw.dryRun}); err != nil {
		return nil, err
	}
	dedupOwners(ctx, kept, true)
	if err := r.carryOver(ctx, st, view, kept, old); err != nil {
		return nil, err
	}
	if view == nil {
		if err := e.validateServed(kept, old); err != nil {
			return nil, err
		}
	}
	if err := st.validateUpdate(ctx, view, kept, old); err != nil {
		return nil, err
	}
	return kept, nil
}

// view is the stored entry's, because that is the form it sees.
func (rw *rewrite) view() *View {
	if sub := rw.e.storage.views[rw.subresource]; sub != nil {
		return sub.Update
	}
	return nil
}

// carryOver puts back what an update may not change and moves the generation.
func (r *Registry) carryOver(ctx context.Context, e *entry, view *View, obj, old Object) error {
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	if view == nil {
		if e.PrepareUpdate != nil {
			if err := e.PrepareUpdate(ctx, r, obj, old); err != nil {
				return err
			}
		}
	} else if view.Prepare != nil {
		view.Prepare(ctx, obj, old)
	}
	share(reflect.ValueOf(obj).Elem(), reflect.ValueOf(old).Elem())
	if e.Spec != nil && !sameSpec(e.Spec(obj), e.Spec(old)) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	if created := old.GetCreationTimestamp(); !created.IsZero() {
		obj.SetCreationTimestamp(created)
	}
	if deleted := old.GetDeletionTimestamp(); !deleted.IsZero() {
		obj.SetDeletionTimestamp(deleted)
	}
	if grace := old.GetDeletionGracePeriodSeconds(); grace != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(grace)
	}
	return nil
}

func sameSpec(a, b any) bool {
	return identical(reflect.ValueOf(a), reflect.ValueOf(b)) || apiequality.Semantic.DeepEqual(a, b)
}

func (e *entry) validateUpdate(ctx context.Context, view *View, obj, old Object) error {
	errs := e.validateMeta(obj)
	errs = append(errs, apivalidation.ValidateObjectMetaAccessorUpdate(obj, old, metadataPath)...)
	switch {
	case view != nil && view.Validate != nil:
		errs = append(errs, tolerate(view.Validate(obj, old), func() field.ErrorList { return view.Validate(old, old) })...)
	case view == nil:
		if e.Validate != nil {
			errs = append(errs, tolerate(e.Validate(obj), func() field.ErrorList { return e.Validate(old) })...)
		}
		if e.ValidateUpdate != nil {
			errs = append(errs, e.ValidateUpdate(obj, old)...)
		}
	}
	if err := e.invalid(obj.GetName(), errs); err != nil {
		return err
	}
	if view == nil && (e.Spec == nil || obj.GetGeneration() != old.GetGeneration()) {
		e.warn(ctx, obj) // an unchanged spec was warned of before
	}
	return nil
}

// Tightened is the Origin of refusals that came with a later version (of
// "010.0.0.1" as an address).
const Tightened = "orch/tightened"

// tolerate drops such refusals where the old object has the same value: an
// update need not mend what was there before the rule.
func tolerate(errs field.ErrorList, ofOld func() field.ErrorList) field.ErrorList {
	tightened := func(e *field.Error) bool { return e.Origin == Tightened }
	if !slices.ContainsFunc(errs, tightened) {
		return errs
	}
	kept := make(map[any]bool)
	for _, e := range ofOld() {
		if tightened(e) {
			kept[e.BadValue] = true
		}
	}
	return slices.DeleteFunc(errs, func(e *field.Error) bool { return tightened(e) && kept[e.BadValue] })
}

// replace writes obj over current, unless nothing changed or the write lets the
// object go.
func (r *Registry) replace(ctx context.Context, rw *rewrite, key string, obj Object, current *store.Entry) (Object, error) {
	e, old := rw.e.storage, current.Object.(Object)
	if e.released(obj, old) {
		return obj, r.remove(ctx, e, key, old, current.ModRevision, rw.dryRun)
	}
	owners := obj.GetManagedFields()
	retimed := rw.managed && sameManagers(owners, old.GetManagedFields())
	if retimed { // a new time alone is no change
		obj.SetManagedFields(old.GetManagedFields())
	}
	value, changed, err := r.codec.difference(e, key, obj, old)
	if retimed && changed && err == nil {
		obj.SetManagedFields(owners)
		value, err = r.codec.encode(e, key, obj)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if !changed {
		return old, nil
	}
	if value, err = r.fit(e, key, value, obj, old); err != nil {
		return nil, err
	}
	out, err := r.putValue(ctx, e, key, value, obj, old, current.ModRevision, rw.dryRun)
	var taken *ClaimedError
	if errors.As(err, &taken) {
		return nil, e.claimRefused(obj, taken)
	}
	return out, err
}

// difference encodes obj and tells whether that differs from old. Both carry
// the same resourceVersion here.
func (c *codec) difference(e *entry, key string, obj, old Object) ([]byte, bool, error) {
	value, err := marshal(e, obj)
	if err != nil {
		return nil, false, fmt.Errorf("encode %s: %w", key, err)
	}
	before, ok := old.(protoMarshaler)
	if !ok || before.Size() == obj.(protoMarshaler).Size() {
		was, err := marshal(e, old)
		if err != nil {
			return nil, false, fmt.Errorf("encode %s: %w", key, err)
		}
		if bytes.Equal(was, value) {
			return nil, false, nil
		}
	}
	if e.Encrypt && c.sealer != nil {
		value, err = c.encode(e, key, obj)
	}
	return value, true, err
}

// released tells that obj was only waiting for finalizers and now has none.
func (e *entry) released(obj, old Object) bool {
	if old.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 || e.held(obj) {
		return false
	}
	if grace := old.GetDeletionGracePeriodSeconds(); grace != nil && *grace != 0 {
		return false
	}
	return len(old.GetFinalizers()) > 0 || e.held(old)
}

func (e *entry) held(obj Object) bool { return e.Held != nil && e.Held(obj) }
