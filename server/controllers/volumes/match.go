package volumes

import (
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Match finds the volume for a claim that names none: one reserved for it,
// else the smallest of those with the fewest access modes that suit it. node is
// where it will be used; nil: not known. With reserved, only a volume reserved
// for the claim counts.
func Match(claim *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, node *corev1.Node, reserved bool) *corev1.PersistentVolume {
	selector := labels.Everything()
	if claim.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(claim.Spec.Selector); err != nil {
			return nil
		}
	}
	var best *corev1.PersistentVolume
	for _, v := range volumes {
		if !couldHold(v, claim) || node != nil && !Reachable(v, node) {
			continue
		}
		if reservedFor(v, claim) {
			return v
		}
		if reserved || v.Spec.ClaimRef != nil || v.Status.Phase != corev1.VolumeAvailable ||
			!selector.Matches(labels.Set(v.Labels)) || classOfVolume(v) != classOf(claim) {
			continue
		}
		if best == nil || closer(v, best) {
			best = v
		}
	}
	return best
}

// closer tells whether a is closer to what was asked for than b.
func closer(a, b *corev1.PersistentVolume) bool {
	if x, y := len(a.Spec.AccessModes), len(b.Spec.AccessModes); x != y {
		return x < y
	}
	return a.Spec.Capacity.Storage().Cmp(*b.Spec.Capacity.Storage()) < 0
}

// couldHold checks what even a volume reserved for the claim must satisfy.
func couldHold(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	return v.DeletionTimestamp == nil && v.Spec.Capacity.Storage().Cmp(*claim.Spec.Resources.Requests.Storage()) >= 0 &&
		modeOf(v.Spec.VolumeMode) == modeOf(claim.Spec.VolumeMode) && offersModes(v, claim) &&
		deref(v.Spec.VolumeAttributesClassName) == deref(claim.Spec.VolumeAttributesClassName)
}

// mismatch says why a volume that the claim asks for by name cannot be had.
func mismatch(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	switch {
	case v.DeletionTimestamp != nil:
		return errors.New("the volume is marked for deletion \"" + v.Name + "\"")
	case v.Spec.Capacity.Storage().Cmp(*claim.Spec.Resources.Requests.Storage()) < 0:
		return errors.New("requested PV is too small")
	case classOfVolume(v) != classOf(claim):
		return errors.New("storageClassName does not match")
	case deref(v.Spec.VolumeAttributesClassName) != deref(claim.Spec.VolumeAttributesClassName):
		return errors.New("volumeAttributesClassName does not match")
	case modeOf(v.Spec.VolumeMode) != modeOf(claim.Spec.VolumeMode):
		return errors.New("incompatible volumeMode")
	case !offersModes(v, claim):
		return errors.New("incompatible accessMode")
	}
	return nil
}

func offersModes(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	for _, mode := range claim.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, mode) {
			return false
		}
	}
	return true
}

// reservedFor tells whether the volume refers to the claim; a reference
// without a UID is by name alone.
func reservedFor(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref := v.Spec.ClaimRef
	return ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name && (ref.UID == "" || ref.UID == claim.UID)
}

// Reachable tells whether the volume can be used on the node.
func Reachable(v *corev1.PersistentVolume, node *corev1.Node) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	terms, err := nodeaffinity.NewNodeSelector(v.Spec.NodeAffinity.Required)
	return err == nil && terms.Match(node)
}

func classOf(claim *corev1.PersistentVolumeClaim) string {
	if class, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return deref(claim.Spec.StorageClassName)
}

func classOfVolume(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

func modeOf(mode *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if mode == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *mode
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
