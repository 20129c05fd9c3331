package registry

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"orch/store"
)

// Typed is the door for code inside the server: reads come from memory and are
// shared (do not change them), writes pass through the same admission,
// defaulting and validation as HTTP. Objects given to it belong to the registry
// from then on.
type Typed[T Object] struct {
	r   *Registry
	res *Resource
}

// Of finds the storage entry whose objects are T (a pointer type such as
// *corev1.Pod). It panics when the table has none.
func Of[T Object](r *Registry) Typed[T] {
	want := reflect.TypeFor[T]().Elem()
	for _, res := range r.resources {
		if e := r.entries[res]; e.goType == want && e.storage == e {
			return Typed[T]{r, res}
		}
	}
	panic(fmt.Sprintf("registry: no resource stores %s", want))
}

// Resource is the table entry behind the door.
func (t Typed[T]) Resource() *Resource { return t.res }

// Get reads memory; a NotFound StatusError when there is none.
func (t Typed[T]) Get(ns, name string) (T, error) {
	e := t.r.entries[t.res]
	obj := t.r.peek(e.key(ns, name))
	if obj == nil {
		var none T
		return none, apierrors.NewNotFound(e.gr, name)
	}
	return obj.(T), nil
}

// List reads memory, in key order. ns "" and sel nil: all.
func (t Typed[T]) List(ns string, sel labels.Selector) []T {
	out, _ := t.list(ns, sel)
	return out
}

func (t Typed[T]) list(ns string, sel labels.Selector) (out []T, revision int64) {
	narrow := sel != nil && !sel.Empty()
	revision, _ = t.r.store.Scan(t.r.entries[t.res].root(ns), "", 0, func(entry *store.Entry) bool {
		if obj := entry.Object.(T); !narrow || sel.Matches(labels.Set(obj.GetLabels())) {
			out = append(out, obj)
		}
		return true
	})
	return out, revision
}

// Create stores obj.
func (t Typed[T]) Create(ctx context.Context, obj T) (T, error) {
	return as[T](t.r.Create(ctx, t.res, obj.GetNamespace(), obj, nil))
}

// Update replaces an object; obj carries the resourceVersion it was read at.
func (t Typed[T]) Update(ctx context.Context, obj T) (T, error) { return t.update(ctx, "", obj) }

// UpdateStatus replaces its status.
func (t Typed[T]) UpdateStatus(ctx context.Context, obj T) (T, error) {
	return t.update(ctx, "status", obj)
}

func (t Typed[T]) update(ctx context.Context, subresource string, obj T) (T, error) {
	out, _, err := t.r.Update(ctx, t.res, subresource, obj.GetNamespace(), obj.GetName(), obj, nil)
	if err != nil {
		var none T
		return none, err
	}
	return out.(T), nil
}

// Mutate runs change on a private copy and stores it, again on conflict; an
// unchanged object is not written.
func (t Typed[T]) Mutate(ctx context.Context, ns, name string, change func(T) error) (T, error) {
	return t.mutate(ctx, "", ns, name, change)
}

// MutateStatus is Mutate for the status.
func (t Typed[T]) MutateStatus(ctx context.Context, ns, name string, change func(T) error) (T, error) {
	return t.mutate(ctx, "status", ns, name, change)
}

func (t Typed[T]) mutate(ctx context.Context, subresource, ns, name string, change func(T) error) (T, error) {
	return as[T](t.r.Mutate(ctx, t.res, subresource, ns, name, func(obj Object) error { return change(obj.(T)) }))
}

// Delete deletes an object.
func (t Typed[T]) Delete(ctx context.Context, ns, name string, opts metav1.DeleteOptions) error {
	_, _, err := t.r.Delete(ctx, t.res, ns, name, &opts)
	return err
}

func as[T Object](obj Object, err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return obj.(T), nil
}

// Watch calls fn for every existing object and then for each change, in order,
// until ctx ends; it returns the cause. old is the zero T for additions, obj for
// deletions is the last state with deleted true. fn must return quickly. synced
// (may be nil) is called once after the existing objects. When the watch falls
// behind it starts over: fn sees the present objects again (old = what it last
// saw).
func (t Typed[T]) Watch(ctx context.Context, fn func(old, obj T, deleted bool), synced func()) error {
	seen := make(map[string]T) // by namespace and name, to tell what changed when starting over
	for {
		err := t.follow(ctx, seen, fn, synced)
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
		synced = nil
	}
}

// follow is one life of a Watch, until the watch falls behind or ctx ends.
func (t Typed[T]) follow(ctx context.Context, seen map[string]T, fn func(old, obj T, deleted bool), synced func()) error {
	revision := t.catchUpSeen(seen, fn)
	cursor, err := t.r.store.Watch(t.r.entries[t.res].prefix, revision)
	if err != nil {
		return err
	}
	defer cursor.Stop()
	if synced != nil {
		synced()
	}
	for {
		events, _, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		for _, event := range events {
			obj := event.Entry.Object.(T)
			old := seen[event.Entry.Key]
			if event.Type == store.Deleted {
				delete(seen, event.Entry.Key)
				fn(old, obj, true)
				continue
			}
			seen[event.Entry.Key] = obj
			fn(old, obj, false)
		}
	}
}

// catchUpSeen shows fn how the present differs from seen, and gives its revision.
func (t Typed[T]) catchUpSeen(seen map[string]T, fn func(old, obj T, deleted bool)) int64 {
	var none T
	present := make(map[string]bool)
	type change struct{ old, obj T }
	var changes []change
	revision, _ := t.r.store.Scan(t.r.entries[t.res].prefix, "", 0, func(entry *store.Entry) bool {
		obj := entry.Object.(T)
		present[entry.Key] = true
		changes = append(changes, change{seen[entry.Key], obj})
		seen[entry.Key] = obj
		return true
	})
	for key, old := range seen {
		if !present[key] {
			delete(seen, key)
			fn(none, old, true)
		}
	}
	for _, c := range changes {
		fn(c.old, c.obj, false)
	}
	return revision
}
