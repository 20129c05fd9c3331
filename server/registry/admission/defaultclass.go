package admission

import (
	"context"
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"

	"orch/server/registry"
)

// defaultStorageClass gives a claim without a class the default one.
type defaultStorageClass struct{}

func (defaultStorageClass) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationCreate || !isOf(a, "", "persistentvolumeclaims", "") {
		return nil
	}
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Spec.StorageClassName != nil {
		return nil
	}
	if _, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return nil
	}
	class := newestDefault(registry.Of[*storagev1.StorageClass](a.Registry).List("", nil),
		"storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
	if class != nil {
		claim.Spec.StorageClassName = ptr.To((*class).Name)
	}
	return nil
}

// defaultIngressClass gives an ingress without a class the default one.
type defaultIngressClass struct{}

func (defaultIngressClass) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationCreate || !isOf(a, "networking.k8s.io", "ingresses", "") {
		return nil
	}
	ingress, ok := a.Object.(*networkingv1.Ingress)
	if !ok || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, ok := ingress.Annotations["kubernetes.io/ingress.class"]; ok {
		return nil
	}
	class := newestDefault(registry.Of[*networkingv1.IngressClass](a.Registry).List("", nil), networkingv1.AnnotationIsDefaultIngressClass)
	if class != nil {
		ingress.Spec.IngressClassName = ptr.To((*class).Name)
	}
	return nil
}

// newestDefault is the class that one of annotations marks as default; of
// several the newest, then the first by name.
func newestDefault[T registry.Object](classes []T, annotations ...string) *T {
	var defaults []T
	for _, class := range classes {
		if slices.ContainsFunc(annotations, func(key string) bool { return class.GetAnnotations()[key] == "true" }) {
			defaults = append(defaults, class)
		}
	}
	if len(defaults) == 0 {
		return nil
	}
	newest := slices.MinFunc(defaults, func(a, b T) int {
		if byAge := b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time); byAge != 0 {
			return byAge
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
	return &newest
}

// claimResize lets only those claims grow whose class allows it.
type claimResize struct{}

func (claimResize) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationUpdate || !isOf(a, "", "persistentvolumeclaims", "") {
		return nil
	}
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	old, wasClaim := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !wasClaim {
		return nil
	}
	before, after := old.Spec.Resources.Requests[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if after.Cmp(before) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		return errors.New("Only bound persistent volume claims can be expanded")
	}
	name := claimClass(claim)
	if name != "" && name == claimClass(old) {
		class, err := registry.Of[*storagev1.StorageClass](a.Registry).Get("", name)
		if err == nil && ptr.Deref(class.AllowVolumeExpansion, false) {
			return nil
		}
	}
	return errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
}

// claimClass is the name of a claim's storage class, "" when it has none.
func claimClass(claim *corev1.PersistentVolumeClaim) string {
	if class, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return ptr.Deref(claim.Spec.StorageClassName, "")
}
