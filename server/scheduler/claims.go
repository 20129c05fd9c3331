package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// Annotations of claims: the binder has bound it; the node whose choice lets
// the binder bind it.
const (
	bindCompleted = "pv.kubernetes.io/bind-completed"
	selectedNode  = "volume.kubernetes.io/selected-node"
)

// Claims checks that the pod's volume claims exist and are bound, or wait for a
// node.
func (d *RegistryDoor) Claims(p *corev1.Pod) string {
	for i := range p.Spec.Volumes {
		volume := &p.Spec.Volumes[i]
		name := claimName(p, volume)
		if name == "" {
			continue
		}
		claim, err := registry.Of[*corev1.PersistentVolumeClaim](d.registry).Get(p.Namespace, name)
		switch {
		case err != nil && volume.Ephemeral != nil:
			return fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case err != nil:
			return fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case claim.DeletionTimestamp != nil:
			return fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		case !bound(claim) && !d.waitsForNode(claim):
			return "pod has unbound immediate PersistentVolumeClaims"
		}
	}
	return ""
}

// selectNode tells the binder where the claims that wait for it will be used.
func (d *RegistryDoor) selectNode(ctx context.Context, p *corev1.Pod, node string) error {
	claims := registry.Of[*corev1.PersistentVolumeClaim](d.registry)
	for i := range p.Spec.Volumes {
		name := claimName(p, &p.Spec.Volumes[i])
		if name == "" {
			continue
		}
		claim, err := claims.Get(p.Namespace, name)
		if err != nil {
			return err
		}
		if bound(claim) {
			continue
		}
		_, err = claims.Mutate(ctx, claim.Namespace, claim.Name, func(now *corev1.PersistentVolumeClaim) error {
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, selectedNode, node)
			return nil
		})
		if err != nil {
			return fmt.Errorf("select a node for claim %s: %w", name, err)
		}
	}
	return nil
}

// claimName is the claim that a volume of the pod uses; "": none.
func claimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

func bound(claim *corev1.PersistentVolumeClaim) bool {
	_, completed := claim.Annotations[bindCompleted]
	return completed && claim.Spec.VolumeName != ""
}

// waitsForNode tells whether the claim's class binds when a pod has a node.
func (d *RegistryDoor) waitsForNode(claim *corev1.PersistentVolumeClaim) bool {
	name, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]
	if !ok && claim.Spec.StorageClassName != nil {
		name = *claim.Spec.StorageClassName
	}
	if name == "" || claim.Spec.VolumeName != "" {
		return false
	}
	class, err := registry.Of[*storagev1.StorageClass](d.registry).Get("", name)
	return err == nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
