package statefulset

import (
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The retention policy of claims works through owner references: a claim that
// is to go with its set or its pod is owned by it, and garbage collection does
// the rest.

func refersTo(ref *metav1.OwnerReference, kind schema.GroupVersionKind, name string) bool {
	return ref.APIVersion == kind.GroupVersion().String() && ref.Kind == kind.Kind && ref.Name == name
}

// stale tells whether a claim is owned by a former object of that name.
func stale(claim *corev1.PersistentVolumeClaim, kind schema.GroupVersionKind, owner metav1.Object) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return refersTo(&ref, kind, owner.GetName()) && ref.UID != owner.GetUID()
	})
}

// wantedOwners tells who should own a pod's claims.
func wantedOwners(set *appsv1.StatefulSet, p *corev1.Pod) (bySet, byPod bool) {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return false, false
	}
	condemned := !inRange(set, ordinalOf(p))
	byPod = policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType && condemned
	return policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType && !byPod, byPod
}

// conflicting tells whether another controller owns a claim.
func conflicting(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, p *corev1.Pod) bool {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil || policy.WhenDeleted != appsv1.DeletePersistentVolumeClaimRetentionPolicyType &&
		policy.WhenScaled != appsv1.DeletePersistentVolumeClaimRetentionPolicyType {
		return false
	}
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		switch {
		case refersTo(&ref, kind, set.Name):
			return ref.UID != set.UID
		case refersTo(&ref, podKind, p.Name):
			return ref.UID != p.UID
		}
		return ref.Controller != nil && *ref.Controller
	})
}

// retained gives a claim with the owners that it should have, or nil when it
// has them.
func retained(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, p *corev1.Pod) *corev1.PersistentVolumeClaim {
	if stale(claim, kind, set) || stale(claim, podKind, p) {
		return nil // it is on its way out
	}
	owners := slices.DeleteFunc(slices.Clone(claim.OwnerReferences), func(ref metav1.OwnerReference) bool {
		return refersTo(&ref, kind, set.Name) || refersTo(&ref, podKind, p.Name)
	})
	if !conflicting(claim, set, p) {
		bySet, byPod := wantedOwners(set, p)
		if bySet {
			owners = append(owners, *metav1.NewControllerRef(set, kind))
		}
		if byPod {
			owners = append(owners, *metav1.NewControllerRef(p, podKind))
		}
	}
	if len(owners) == len(claim.OwnerReferences) && (len(owners) == 0 || reflect.DeepEqual(owners, claim.OwnerReferences)) {
		return nil
	}
	changed := claim.DeepCopy()
	changed.OwnerReferences = owners
	return changed
}
