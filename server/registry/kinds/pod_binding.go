package kinds

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

func newBinding() runtime.Object { return new(corev1.Binding) }

// bindings is the old way to bind a pod: a create on the collection.
func bindings() *registry.Resource {
	res := virtual[corev1.Binding](corev1.SchemeGroupVersion, "bindings", true, nil)
	res.Evaluate = func(ctx context.Context, r *registry.Registry, ns string, obj registry.Object, dryRun bool) (registry.Object, error) {
		b := obj.(*corev1.Binding)
		if b.Name == "" {
			return nil, errors.NewBadRequest("Name parameter required.")
		}
		return b, bindPod(ctx, r, ns, b.Name, b, dryRun)
	}
	return res
}

func createBinding(ctx context.Context, r *registry.Registry, ns, name string, body runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	b, ok := body.(*corev1.Binding)
	if !ok {
		return nil, errors.NewBadRequest(fmt.Sprintf("not a Binding object: %T", body))
	}
	if b.Name != name {
		return nil, errors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if err := bindPod(ctx, r, ns, name, b, len(opts.DryRun) > 0); err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

// bindPod gives the pod its node, unless it has one, is gated or is going.
func bindPod(ctx context.Context, r *registry.Registry, ns, name string, b *corev1.Binding, dryRun bool) error {
	if errs := validateBinding(b); len(errs) > 0 {
		return errs.ToAggregate()
	}
	res := r.Lookup("", "v1", "pods")
	assign := func(obj registry.Object) error { return assignPod(obj.(*corev1.Pod), b, metav1.Now().Rfc3339Copy()) }
	if dryRun {
		obj, err := r.Get(ctx, res, ns, name, &metav1.GetOptions{})
		if err != nil {
			return err
		}
		return assign(obj.DeepCopyObject().(registry.Object))
	}
	_, err := r.Mutate(ctx, res, "binding", ns, name, assign)
	return err
}

func assignPod(p *corev1.Pod, b *corev1.Binding, now metav1.Time) error {
	conflict := func(format string, args ...any) error {
		return errors.NewConflict(corev1.Resource("pods/binding"), p.Name, fmt.Errorf(format, args...))
	}
	switch {
	case b.UID != "" && b.UID != p.UID:
		return conflict("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, p.UID)
	case b.ResourceVersion != "" && b.ResourceVersion != p.ResourceVersion:
		return conflict("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, p.ResourceVersion)
	case p.DeletionTimestamp != nil:
		return conflict("pod %s is being deleted, cannot be assigned to a host", p.Name)
	case p.Spec.NodeName != "":
		return conflict("pod %v is already assigned to node %q", p.Name, p.Spec.NodeName)
	case len(p.Spec.SchedulingGates) > 0:
		return conflict("pod %v has non-empty .spec.schedulingGates", p.Name)
	}
	p.Spec.NodeName = b.Target.Name
	p.Status.NominatedNodeName = ""
	p.Annotations = overlay(p.Annotations, b.Annotations)
	p.Labels = overlay(p.Labels, b.Labels)
	setPodCondition(p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, ObservedGeneration: p.Generation}, now)
	return nil
}

// overlay adds over to base, which it may change.
func overlay(base, over map[string]string) map[string]string {
	if len(over) == 0 {
		return base
	}
	if base == nil {
		return maps.Clone(over)
	}
	maps.Copy(base, over)
	return base
}

func validateBinding(b *corev1.Binding) field.ErrorList {
	path := field.NewPath("target")
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(path.Child("kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	return errs
}
