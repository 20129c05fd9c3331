package registry

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// project gives the projection of obj with its kind set.
func project(sub *Subresource, obj Object) (runtime.Object, error) {
	out, err := sub.Project.Get(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	out.GetObjectKind().SetGroupVersionKind(sub.Kind)
	return out, nil
}

// updateProjection writes a body of the subresource's kind into its parent. Its
// resourceVersion and UID, when set, are preconditions on the parent.
func (r *Registry) updateProjection(ctx context.Context, rw *rewrite, sub *Subresource, body runtime.Object) (runtime.Object, bool, error) {
	meta, ok := body.(metav1.Object)
	if !ok {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("the object provided is not a %s", sub.Kind.Kind))
	}
	if err := checkName(meta, rw.ns, rw.name); err != nil {
		return nil, false, err
	}
	body.GetObjectKind().SetGroupVersionKind(sub.Kind)
	return r.rewriteProjection(ctx, rw, sub, func(runtime.Object) (runtime.Object, error) { return body.DeepCopyObject(), nil })
}

// rewriteProjection sets what next makes of the projection into the parent.
func (r *Registry) rewriteProjection(ctx context.Context, rw *rewrite, sub *Subresource, next func(view runtime.Object) (runtime.Object, error)) (runtime.Object, bool, error) {
	rw.unconditional, rw.managed = true, true
	rw.next = func(_ context.Context, current Object) (Object, error) { return r.nextParent(rw, sub, current, next) }
	out, _, err := r.rewrite(ctx, rw)
	if err != nil {
		return nil, false, err
	}
	served, err := rw.e.serve(out)
	if err != nil {
		return nil, false, err
	}
	view, err := project(sub, served)
	return view, false, err
}

// nextParent gives the parent that the wanted projection asks for. The owners of
// the replica count see it at its place in the projection.
func (r *Registry) nextParent(rw *rewrite, sub *Subresource, current Object, next func(runtime.Object) (runtime.Object, error)) (Object, error) {
	view, err := project(sub, current)
	if err != nil {
		return nil, err
	}
	handler := managedfields.NewScaleHandler(current.GetManagedFields(), rw.e.gvk.GroupVersion(),
		managedfields.ResourcePathMappings{rw.e.apiVersion: fieldpath.MakePathOrDie("spec", "replicas")})
	live := view.(metav1.Object)
	if owners, err := handler.ToSubresource(); err == nil {
		live.SetManagedFields(owners)
	}
	wanted, err := next(view)
	if err != nil {
		return nil, err
	}
	body := wanted.(metav1.Object)
	if uid := body.GetUID(); uid != "" && uid != current.GetUID() {
		return nil, rw.uidMismatch(uid, current.GetUID())
	}
	if !rw.applied {
		if m, err := r.fieldManager(rw.e, rw.subresource); err == nil {
			m.UpdateNoErrors(view, wanted, rw.manager)
		}
	}
	obj := current.DeepCopyObject().(Object)
	if err := sub.Project.Set(obj, wanted); err != nil {
		return nil, plainFailure(err)
	}
	obj.SetResourceVersion(body.GetResourceVersion())
	if owners, err := handler.ToParent(body.GetManagedFields()); err == nil {
		obj.SetManagedFields(owners)
	}
	return obj, nil
}

func (rw *rewrite) uidMismatch(wanted, have types.UID) error {
	return apierrors.NewConflict(rw.e.storage.gr, rw.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", wanted, have))
}
