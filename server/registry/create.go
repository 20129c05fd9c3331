package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/store"
)

const (
	maxNameAttempts  = 8  // to find a free generated name
	maxClaimAttempts = 16 // to allocate claims that others take meanwhile
)

// Create admits, defaults, validates and stores obj, which belongs to the
// registry from here on. ns is the request's namespace. The result is shared.
func (r *Registry) Create(ctx context.Context, res *Resource, ns string, obj Object, opts *metav1.CreateOptions) (Object, error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.CreateOptions{}
	}
	wipeSystemFields(obj)
	if err := e.settleNamespace(obj, ns); err != nil {
		return nil, err
	}
	dedupOwners(ctx, obj, false)
	out, err := r.create(ctx, e, obj, nil, fieldManager(ctx, opts.FieldManager), isDryRun(opts.DryRun))
	if err != nil {
		return nil, err
	}
	if e.Evaluate != nil {
		return out, nil
	}
	return e.serve(out)
}

// create runs the part that POST, PUT of an absent object and apply share. obj
// has e's form; managed, when set, are the fields an apply has worked out.
func (r *Registry) create(ctx context.Context, e *entry, obj Object, managed []metav1.ManagedFieldsEntry, manager string, dryRun bool) (Object, error) {
	e.setKind(obj)
	if e.Default != nil {
		e.Default(obj)
	}
	if managed == nil && e.Evaluate == nil {
		r.manageCreate(e, obj, manager)
	}
	kept, err := e.keep(obj)
	if err != nil {
		return nil, err
	}
	if e.Stored != nil && e.storage.Default != nil {
		e.storage.Default(kept)
	}
	st := e.storage
	attempt := &Attempt{Resource: st.Resource, Operation: OperationCreate,
		Namespace: kept.GetNamespace(), Name: kept.GetName(), Object: kept, DryRun: dryRun}
	if err := r.Admit(ctx, attempt); err != nil {
		return nil, err
	}
	dedupOwners(ctx, kept, true)
	if err := e.validateServed(kept, nil); err != nil {
		return nil, err
	}
	if st.Evaluate != nil {
		if st.Validate != nil {
			if err := st.invalid(kept.GetName(), st.Validate(kept)); err != nil {
				return nil, err
			}
		}
		return st.Evaluate(ctx, r, kept.GetNamespace(), kept, dryRun)
	}
	if kept.GetResourceVersion() != "" {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 500,
			Message: "resourceVersion should not be set on objects to be created"}}
	}
	return r.insert(ctx, st, kept, attempt)
}

// insert names, prepares, validates and writes an admitted object, again when a
// generated name or an allocated claim turns out to be taken.
func (r *Registry) insert(ctx context.Context, e *entry, obj Object, a *Attempt) (Object, error) {
	generated := obj.GetName() == "" && obj.GetGenerateName() != ""
	pristine := obj
	asked := e.claims(obj)
	for names, claims := 1, 1; ; {
		if e.Claims != nil {
			obj = pristine.DeepCopyObject().(Object) // PrepareCreate allocates into it
		}
		if generated {
			obj.SetName(generateName(obj.GetGenerateName()))
		}
		out, err := r.insertWithRiders(ctx, e, obj, a)
		taken := (*ClaimedError)(nil)
		switch {
		case err == nil:
			return out, nil
		case errors.As(err, &taken):
			if slices.Contains(asked, taken.Claim) {
				return nil, e.claimRefused(obj, taken)
			}
			if claims++; claims > maxClaimAttempts {
				return nil, apierrors.NewInternalError(fmt.Errorf("allocate for %s %q: %w", e.gr, obj.GetName(), err))
			}
		case generated && apierrors.IsAlreadyExists(err):
			if names++; names > maxNameAttempts {
				return nil, apierrors.NewGenerateNameConflict(e.gr, obj.GetName(), 1)
			}
		default:
			return nil, err
		}
	}
}

func (r *Registry) insertOnce(ctx context.Context, e *entry, obj Object, dryRun bool, riders []store.Op) (Object, error) {
	r.fillSystemFields(obj)
	if e.Namespaced && obj.GetNamespace() == "" {
		return nil, e.invalid(obj.GetName(), field.ErrorList{field.Required(metadataPath.Child("namespace"), "")})
	}
	if e.PrepareCreate != nil {
		if err := e.PrepareCreate(ctx, r, obj); err != nil {
			return nil, err
		}
	}
	if e.Spec != nil {
		obj.SetGeneration(1)
	} else {
		obj.SetGeneration(0)
	}
	if err := e.validateCreate(ctx, obj); err != nil {
		return nil, err
	}
	key := e.key(obj.GetNamespace(), obj.GetName())
	// A further attempt prepares obj again: it must not be the one that shares.
	out, err := r.put(ctx, e, key, r.codec.siblings.shared(obj), nil, store.Absent, dryRun, riders...)
	if riderMoved(err, riders) {
		return nil, errRiderMoved
	}
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil, e.alreadyExists(obj.GetName(), conflict)
	}
	return out, err
}

func (e *entry) validateCreate(ctx context.Context, obj Object) error {
	errs := e.validateMeta(obj)
	if e.Validate != nil {
		errs = append(errs, e.Validate(obj)...)
	}
	if err := e.invalid(obj.GetName(), errs); err != nil {
		return err
	}
	e.warn(ctx, obj)
	return nil
}

// validateServed holds obj, in its stored form, to what its served version asks.
func (e *entry) validateServed(obj, old Object) error {
	if e.Stored == nil || e.Stored.Validate == nil {
		return nil
	}
	return e.storage.invalid(obj.GetName(), e.Stored.Validate(obj, old))
}

// warn looks for what is hardly meant only if somebody hears of it.
func (e *entry) warn(ctx context.Context, obj Object) {
	if e.Warnings == nil || ctx.Value(warningsKey{}) == nil {
		return
	}
	for _, text := range e.Warnings(obj) {
		AddWarning(ctx, text)
	}
}

func (e *entry) alreadyExists(name string, conflict *store.ConflictError) error {
	err := apierrors.NewAlreadyExists(e.gr, name)
	if conflict.Current != nil {
		if current, ok := conflict.Current.Object.(Object); ok && current.GetDeletionTimestamp() != nil {
			err.ErrStatus.Message = "object is being deleted: " + err.ErrStatus.Message
		}
	}
	return err
}

// put writes obj under key together with its claims and riders. old is what it replaces;
// expect is the mod-revision to find. The result is the shared object.
func (r *Registry) put(ctx context.Context, e *entry, key string, obj, old Object, expect int64, dryRun bool, riders ...store.Op) (Object, error) {
	value, err := r.codec.encode(e, key, obj)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if old == nil { // what is only marked for deletion must go, whatever its size
		if value, err = r.fit(e, key, value, obj, nil); err != nil {
			return nil, err
		}
	}
	return r.putValue(ctx, e, key, value, obj, old, expect, dryRun, riders...)
}

// maxStored is how large an object may be in the store, as etcd's limit of a
// request is: 1.5 MiB.
const maxStored = 3 << 19

// fit gives the value that is stored for obj, which may not be too large unless
// old was larger. As upstream, it lets go of who owns what first.
func (r *Registry) fit(e *entry, key string, value []byte, obj, old Object) (_ []byte, err error) {
	if len(value) <= maxStored {
		return value, nil
	}
	if len(obj.GetManagedFields()) > 0 {
		obj.SetManagedFields(nil)
		if value, err = r.codec.encode(e, key, obj); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	if len(value) > maxStored && !r.codec.shrinks(e, key, value, old) {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a stored object may have %d bytes, this one has %d", maxStored, len(value)))
	}
	return value, nil
}

func (c *codec) shrinks(e *entry, key string, value []byte, old Object) bool {
	if old == nil {
		return false
	}
	was, err := c.encode(e, key, old)
	return err == nil && len(value) < len(was)
}

func (r *Registry) putValue(ctx context.Context, e *entry, key string, value []byte, obj, old Object, expect int64, dryRun bool, riders ...store.Op) (Object, error) {
	ops := append([]store.Op{{Key: key, Value: value, Object: obj, Expect: expect}}, e.claimOps(key, obj, old)...)
	ops = append(ops, riders...)
	entries, err := r.commit(ctx, ops, dryRun)
	if err != nil {
		if taken := asClaimed(err); taken != nil {
			return nil, taken
		}
		return nil, err
	}
	if dryRun {
		return obj, nil
	}
	return entries[0].Object.(Object), nil
}

// commit writes ops, or for a dry run only looks whether they would succeed.
func (r *Registry) commit(ctx context.Context, ops []store.Op, dryRun bool) ([]*store.Entry, error) {
	if !dryRun {
		entries, err := r.write(ctx, ops...)
		return entries, storeFailure(err)
	}
	for _, op := range ops {
		current, _ := r.store.Get(op.Key)
		revision := store.Absent
		if current != nil {
			revision = current.ModRevision
		}
		if op.Expect != store.Any && op.Expect != revision {
			return nil, &store.ConflictError{Key: op.Key, Expect: op.Expect, Current: current}
		}
	}
	return nil, nil
}

// storeFailure words a store that cannot write now; conflicts pass through.
func storeFailure(err error) error {
	var conflict *store.ConflictError
	switch {
	case err == nil, errors.As(err, &conflict):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError("the write was not confirmed in time", 1)
	case errors.Is(err, store.ErrUnknownOutcome):
		return apierrors.NewTimeoutError(err.Error(), 1)
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrNotLeader),
		errors.Is(err, store.ErrRemoved), errors.Is(err, store.ErrSuperseded), // the others serve
		errors.Is(err, store.ErrReadOnly):
		return apierrors.NewServiceUnavailable(err.Error())
	}
	return apierrors.NewInternalError(err)
}

// unwritten tells whether err is the store's: the write was not refused for what
// was read, and may have happened. To read again and go on from there would do
// it twice, or take its own effect for somebody else's.
func unwritten(err error) bool {
	return apierrors.IsTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
