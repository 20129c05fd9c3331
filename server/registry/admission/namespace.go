package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// namespaceLifecycle refuses objects in namespaces that do not exist or are
// going away, and keeps the system's own namespaces.
type namespaceLifecycle struct{}

func (namespaceLifecycle) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Resource.Group == "" && a.Resource.Plural == "namespaces" {
		if a.Operation == registry.OperationDelete && isImmortal(a.Name) {
			return errors.New("this namespace may not be deleted")
		}
		return nil
	}
	if a.Namespace == "" || a.Operation == registry.OperationDelete || a.Operation == registry.OperationConnect {
		return nil
	}
	// Whether a namespace exists must not leak to those who ask for rights in it.
	if a.Resource.Plural == "localsubjectaccessreviews" {
		return nil
	}
	namespace, err := registry.Of[*corev1.Namespace](a.Registry).Get("", a.Namespace)
	if err != nil {
		return err
	}
	if a.Operation == registry.OperationCreate && namespace.Status.Phase == corev1.NamespaceTerminating {
		return terminating(a)
	}
	return nil
}

func isImmortal(name string) bool {
	return name == metav1.NamespaceDefault || name == metav1.NamespaceSystem || name == metav1.NamespacePublic
}

// terminating carries a cause by which controllers recognise the refusal.
func terminating(a *registry.Attempt) error {
	name := a.Name
	if o, ok := a.Object.(metav1.Object); ok && name == "" {
		name = o.GetName()
	}
	refusal := apierrors.NewForbidden(a.Resource.GroupResource(), name,
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
	refusal.ErrStatus.Details.Causes = append(refusal.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace),
		Field:   "metadata.namespace",
	})
	return refusal
}
