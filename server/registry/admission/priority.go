package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"

	"orch/server/registry"
)

// podPriority turns a pod's priority class into its priority, and keeps
// priority classes to one default.
type podPriority struct{}

func (p podPriority) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Subresource != "" {
		return nil
	}
	switch obj := a.Object.(type) {
	case *corev1.Pod:
		if a.Operation == registry.OperationCreate {
			return p.resolve(a, obj)
		}
		if old, ok := a.Old.(*corev1.Pod); ok {
			keepPriority(obj, old)
		}
	case *schedulingv1.PriorityClass:
		return p.checkDefault(a, obj)
	}
	return nil
}

// keepPriority lets clients that do not know the fields update the pod.
func keepPriority(pod, old *corev1.Pod) {
	if pod.Spec.Priority == nil {
		pod.Spec.Priority = old.Spec.Priority
	}
	if pod.Spec.PreemptionPolicy == nil {
		pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
}

func (p podPriority) resolve(a *registry.Attempt, pod *corev1.Pod) error {
	class, err := p.class(a.Registry, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	pod.Spec.PriorityClassName = class.Name
	if given := pod.Spec.Priority; given != nil && *given != class.Value {
		return fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *given, class.Value)
	}
	pod.Spec.Priority = ptr.To(class.Value)
	if class.PreemptionPolicy == nil {
		return nil
	}
	if given := pod.Spec.PreemptionPolicy; given != nil && *given != *class.PreemptionPolicy {
		return fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *given, *class.PreemptionPolicy)
	}
	pod.Spec.PreemptionPolicy = ptr.To(*class.PreemptionPolicy)
	return nil
}

// class is the named class, or the default one, or what holds without any.
func (p podPriority) class(r *registry.Registry, name string) (*schedulingv1.PriorityClass, error) {
	if name == "" {
		if class := defaultClass(r); class != nil {
			return class, nil
		}
		return &schedulingv1.PriorityClass{PreemptionPolicy: ptr.To(corev1.PreemptLowerPriority)}, nil
	}
	class, err := registry.Of[*schedulingv1.PriorityClass](r).Get("", name)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("no PriorityClass with name %v was found", name)
	}
	return class, err
}

// defaultClass is the lowest default, should two of them have been made at once.
func defaultClass(r *registry.Registry) *schedulingv1.PriorityClass {
	var lowest *schedulingv1.PriorityClass
	for _, class := range registry.Of[*schedulingv1.PriorityClass](r).List("", nil) {
		if class.GlobalDefault && (lowest == nil || class.Value < lowest.Value) {
			lowest = class
		}
	}
	return lowest
}

func (podPriority) checkDefault(a *registry.Attempt, class *schedulingv1.PriorityClass) error {
	if !class.GlobalDefault {
		return nil
	}
	present := defaultClass(a.Registry)
	if present != nil && (a.Operation == registry.OperationCreate || present.Name != class.Name) {
		return fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", present.Name)
	}
	return nil
}
