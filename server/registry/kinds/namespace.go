package kinds

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/registry"
)

func namespaces() *registry.Resource {
	spec := within(func(n *corev1.Namespace) *corev1.NamespaceSpec { return &n.Spec })
	status := within(func(n *corev1.Namespace) *corev1.NamespaceStatus { return &n.Status })
	return entry[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", traits[*corev1.Namespace]{
		ShortNames: []string{"ns"}, Cluster: true,
		// A collection delete would be too easy a mistake.
		Verbs:          []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		Status:         status,
		StatusPrepare:  func(n, old *corev1.Namespace) { spec.carry(n, old) },
		StatusValidate: validateNamespaceStatus,
		Default:        defaultNamespace,
		PrepareCreate:  prepareNamespaceCreate,
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, n, old *corev1.Namespace) error {
			spec.carry(n, old)
			return nil
		},
		Validate:            validateNamespace,
		ValidateName:        apivalidation.NameIsDNSLabel,
		Fields:              func(n *corev1.Namespace) fields.Set { return fields.Set{"status.phase": string(n.Status.Phase)} },
		BeginDelete:         beginNamespaceDelete,
		Held:                func(n *corev1.Namespace) bool { return len(n.Spec.Finalizers) > 0 },
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("Status", "string", "The status of the namespace"), ageColumn()),
		Row: func(n *corev1.Namespace, now time.Time) []any {
			return []any{n.Name, string(n.Status.Phase), age(n, now)}
		},
		Subresources: []*registry.Subresource{{Name: "finalize", Update: &registry.View{
			Prepare: func(_ context.Context, obj, old registry.Object) {
				status.carry(obj.(*corev1.Namespace), old.(*corev1.Namespace))
			},
			Validate: compare(validateNamespaceFinalize),
		}}},
	})
}

func defaultNamespace(n *corev1.Namespace) {
	setZero(&n.Status.Phase, corev1.NamespaceActive)
	if n.Name == "" {
		return // of a generateName; PrepareCreate sees the name
	}
	labelNamespace(n)
}

func labelNamespace(n *corev1.Namespace) {
	if n.Labels[corev1.LabelMetadataName] == n.Name {
		return
	}
	if n.Labels == nil {
		n.Labels = make(map[string]string, 1)
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

func prepareNamespaceCreate(_ context.Context, _ *registry.Registry, n *corev1.Namespace) error {
	n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
		n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
	if n.Name != "" {
		labelNamespace(n)
	}
	return nil
}

// beginNamespaceDelete keeps a namespace, as Terminating, until its spec has no
// finalizer any more: the namespace controller empties it first.
func beginNamespaceDelete(_ context.Context, _ *registry.Registry, n *corev1.Namespace, _ *metav1.DeleteOptions) (bool, error) {
	if n.DeletionTimestamp == nil {
		n.Status.Phase = corev1.NamespaceTerminating
	}
	return len(n.Spec.Finalizers) > 0, nil
}
