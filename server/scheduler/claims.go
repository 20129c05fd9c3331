package scheduler

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/volumes"
	"orch/server/registry"
)

// Annotations of claims: the binder has bound it; the node whose choice lets
// the binder bind it.
const (
	bindCompleted = "pv.kubernetes.io/bind-completed"
	selectedNode  = "volume.kubernetes.io/selected-node"
)

// ClaimState is what a pod's volume claims mean for where it may run.
type ClaimState struct {
	Problem   string                      // why it may run nowhere
	Exclusive []string                    // claims for one pod alone, as namespace/name
	Refuse    func(n *corev1.Node) string // why it may not run on n; nil: any node will do
}

// Claims looks up the pod's volume claims: they must exist and be bound, or wait
// for a node that a suitable volume can be reached from or made for.
func (d *RegistryDoor) Claims(p *corev1.Pod) (state ClaimState) {
	var fixed []*corev1.PersistentVolume
	var late []lateClaim
	missing := false
	if state.Problem = d.resourceClaims(p); state.Problem != "" {
		return state
	}
	for i := range p.Spec.Volumes {
		volume := &p.Spec.Volumes[i]
		name := claimName(p, volume)
		if name == "" {
			continue
		}
		claim, err := registry.Of[*corev1.PersistentVolumeClaim](d.registry).Get(p.Namespace, name)
		var class *storagev1.StorageClass
		if err == nil && !bound(claim) {
			class = d.lateClass(claim)
		}
		switch {
		case err != nil && volume.Ephemeral != nil:
			state.Problem = fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case err != nil:
			state.Problem = fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case volume.Ephemeral != nil && !metav1.IsControlledBy(claim, p):
			state.Problem = fmt.Sprintf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, claim.Name, p.Namespace, p.Name)
		case claim.Status.Phase == corev1.ClaimLost:
			state.Problem = fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		case claim.DeletionTimestamp != nil:
			state.Problem = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		case !bound(claim) && class == nil:
			state.Problem = "pod has unbound immediate PersistentVolumeClaims"
		case bound(claim):
			v, err := registry.Of[*corev1.PersistentVolume](d.registry).Get("", claim.Spec.VolumeName)
			fixed, missing = append(fixed, v), missing || err != nil
		default:
			late = append(late, lateClaim{claim, class})
		}
		if state.Problem != "" {
			return state
		}
		if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
			state.Exclusive = append(state.Exclusive, claim.Namespace+"/"+claim.Name)
		}
	}
	switch {
	case missing:
		state.Refuse = func(*corev1.Node) string { return volumeMissing }
	case len(late) > 0:
		state.Refuse = refuseVolumes(fixed, late, registry.Of[*corev1.PersistentVolume](d.registry).List("", nil))
	case len(fixed) > 0:
		state.Refuse = refuseVolumes(fixed, nil, nil)
	}
	return state
}

// resourceClaims says which of a pod's claims of devices keeps it from running:
// no node has a driver that could serve one.
func (d *RegistryDoor) resourceClaims(p *corev1.Pod) string {
	for _, c := range p.Spec.ResourceClaims {
		name := c.ResourceClaimName
		if name == nil {
			made := slices.IndexFunc(p.Status.ResourceClaimStatuses, func(s corev1.PodResourceClaimStatus) bool { return s.Name == c.Name })
			if made < 0 {
				return fmt.Sprintf("pod %q: ResourceClaim not created yet", p.Namespace+"/"+p.Name)
			}
			if name = p.Status.ResourceClaimStatuses[made].ResourceClaimName; name == nil {
				continue // the template needs none
			}
		}
		claim, err := registry.Of[*resourcev1.ResourceClaim](d.registry).Get(p.Namespace, *name)
		switch {
		case err != nil:
			return fmt.Sprintf("resourceclaim %q not found", *name)
		case claim.DeletionTimestamp != nil:
			return fmt.Sprintf("resourceclaim %q is being deleted", *name)
		}
		return "cannot allocate all claims"
	}
	return ""
}

// lateClaim is a claim that is bound when its pod has a node.
type lateClaim struct {
	claim *corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
}

// What a node lacks of a pod's volumes, in kube-scheduler's words.
const (
	volumeMissing = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	volumeFar     = "node(s) didn't match PersistentVolume's node affinity"
	volumeNone    = "node(s) didn't find available persistent volumes to bind"
)

// refuseVolumes checks nodes against the volumes that claims are bound to, and
// those of all that could be had for claims that are not.
func refuseVolumes(fixed []*corev1.PersistentVolume, late []lateClaim, all []*corev1.PersistentVolume) func(*corev1.Node) string {
	return func(n *corev1.Node) string {
		for _, v := range fixed {
			if !volumes.Reachable(v, n) {
				return volumeFar
			}
		}
		free := slices.Clone(all)
		for _, l := range late {
			if v := volumes.Match(l.claim, free, n, false); v != nil {
				free = slices.DeleteFunc(free, func(o *corev1.PersistentVolume) bool { return o == v })
			} else if !provisions(l.class, n) {
				return volumeNone
			}
		}
		return ""
	}
}

// provisions tells whether somebody makes volumes of the class for the node.
func provisions(class *storagev1.StorageClass, n *corev1.Node) bool {
	if class.Provisioner == "kubernetes.io/no-provisioner" {
		return false
	}
	for _, term := range class.AllowedTopologies {
		suits := !slices.ContainsFunc(term.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, n.Labels[r.Key])
		})
		if suits {
			return true
		}
	}
	return len(class.AllowedTopologies) == 0
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

// lateClass is the claim's class if it binds only when a pod has a node; else nil.
func (d *RegistryDoor) lateClass(claim *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	name, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]
	if !ok && claim.Spec.StorageClassName != nil {
		name = *claim.Spec.StorageClassName
	}
	if name == "" || claim.Spec.VolumeName != "" {
		return nil
	}
	class, err := registry.Of[*storagev1.StorageClass](d.registry).Get("", name)
	if err != nil || class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
		return nil
	}
	return class
}
