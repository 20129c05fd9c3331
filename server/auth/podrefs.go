package auth

import (
	"iter"

	corev1 "k8s.io/api/core/v1"
)

// usesSecret tells whether pod names the secret, or a volume that it mounts does.
func (n *Nodes) usesSecret(pod *corev1.Pod, name string) bool {
	for s := range PodSecrets(pod) {
		if s == name {
			return true
		}
	}
	for claim := range podClaims(pod) {
		if pv := n.volumeOf(pod.Namespace, claim); pv != nil && volumeUsesSecret(pv, name, pod.Namespace) {
			return true
		}
	}
	return false
}

// PodSecrets yields the names of all secrets that the pod's spec mentions.
func PodSecrets(pod *corev1.Pod) iter.Seq[string] {
	return func(yield func(string) bool) {
		ok := true
		visit := func(name string) {
			ok = ok && (name == "" || yield(name))
		}
		for _, ref := range pod.Spec.ImagePullSecrets {
			visit(ref.Name)
		}
		for env := range podEnv(pod) {
			if env.from != nil && env.from.SecretRef != nil {
				visit(env.from.SecretRef.Name)
			}
			if env.value != nil && env.value.SecretKeyRef != nil {
				visit(env.value.SecretKeyRef.Name)
			}
		}
		for i := range pod.Spec.Volumes {
			volumeSecrets(&pod.Spec.Volumes[i].VolumeSource, visit)
		}
	}
}

func volumeSecrets(v *corev1.VolumeSource, visit func(string)) {
	local := func(ref *corev1.LocalObjectReference) {
		if ref != nil {
			visit(ref.Name)
		}
	}
	switch {
	case v.Secret != nil:
		visit(v.Secret.SecretName)
	case v.Projected != nil:
		for i := range v.Projected.Sources {
			if s := v.Projected.Sources[i].Secret; s != nil {
				visit(s.Name)
			}
		}
	case v.CSI != nil:
		local(v.CSI.NodePublishSecretRef)
	case v.ISCSI != nil:
		local(v.ISCSI.SecretRef)
	case v.FlexVolume != nil:
		local(v.FlexVolume.SecretRef)
	case v.AzureFile != nil:
		visit(v.AzureFile.SecretName)
	case v.CephFS != nil:
		local(v.CephFS.SecretRef)
	case v.Cinder != nil:
		local(v.Cinder.SecretRef)
	case v.RBD != nil:
		local(v.RBD.SecretRef)
	case v.ScaleIO != nil:
		local(v.ScaleIO.SecretRef)
	case v.StorageOS != nil:
		local(v.StorageOS.SecretRef)
	}
}

// volumeUsesSecret knows the references by which a node mounts a volume.
func volumeUsesSecret(pv *corev1.PersistentVolume, name, claimNamespace string) bool {
	is := func(ref *corev1.SecretReference) bool {
		return ref != nil && ref.Name == name && (ref.Namespace == "" || ref.Namespace == claimNamespace)
	}
	source := &pv.Spec.PersistentVolumeSource
	switch {
	case source.CSI != nil:
		return is(source.CSI.NodePublishSecretRef) || is(source.CSI.NodeStageSecretRef) || is(source.CSI.NodeExpandSecretRef)
	case source.ISCSI != nil:
		return is(source.ISCSI.SecretRef)
	case source.FlexVolume != nil:
		return is(source.FlexVolume.SecretRef)
	case source.RBD != nil:
		return is(source.RBD.SecretRef)
	case source.CephFS != nil:
		return is(source.CephFS.SecretRef)
	}
	return false
}

func usesConfigMap(pod *corev1.Pod, name string) bool {
	for env := range podEnv(pod) {
		if env.from != nil && env.from.ConfigMapRef != nil && env.from.ConfigMapRef.Name == name ||
			env.value != nil && env.value.ConfigMapKeyRef != nil && env.value.ConfigMapKeyRef.Name == name {
			return true
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap != nil && v.ConfigMap.Name == name {
			return true
		}
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			if c := v.Projected.Sources[j].ConfigMap; c != nil && c.Name == name {
				return true
			}
		}
	}
	return false
}

// envSource is one place from which a container takes environment variables.
type envSource struct {
	from  *corev1.EnvFromSource
	value *corev1.EnvVarSource
}

func podEnv(pod *corev1.Pod) iter.Seq[envSource] {
	return func(yield func(envSource) bool) {
		visit := func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
			for i := range from {
				if !yield(envSource{from: &from[i]}) {
					return false
				}
			}
			for i := range env {
				if env[i].ValueFrom != nil && !yield(envSource{value: env[i].ValueFrom}) {
					return false
				}
			}
			return true
		}
		for i := range pod.Spec.InitContainers {
			if c := &pod.Spec.InitContainers[i]; !visit(c.Env, c.EnvFrom) {
				return
			}
		}
		for i := range pod.Spec.Containers {
			if c := &pod.Spec.Containers[i]; !visit(c.Env, c.EnvFrom) {
				return
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			if c := &pod.Spec.EphemeralContainers[i]; !visit(c.Env, c.EnvFrom) {
				return
			}
		}
	}
}

func usesClaim(pod *corev1.Pod, name string) bool {
	for claim := range podClaims(pod) {
		if claim == name {
			return true
		}
	}
	return false
}

// podClaims yields the names of the persistent volume claims that pod mounts.
func podClaims(pod *corev1.Pod) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			switch {
			case v.PersistentVolumeClaim != nil:
				if !yield(v.PersistentVolumeClaim.ClaimName) {
					return
				}
			case v.Ephemeral != nil:
				if !yield(pod.Name + "-" + v.Name) {
					return
				}
			}
		}
	}
}

func (n *Nodes) usesVolume(pod *corev1.Pod, name string) bool {
	for claim := range podClaims(pod) {
		if pvc, err := n.objects.PersistentVolumeClaim(pod.Namespace, claim); err == nil && pvc.Spec.VolumeName == name {
			return true
		}
	}
	return false
}

// volumeOf is the volume bound to a claim, nil when there is none.
func (n *Nodes) volumeOf(namespace, claim string) *corev1.PersistentVolume {
	pvc, err := n.objects.PersistentVolumeClaim(namespace, claim)
	if err != nil || pvc.Spec.VolumeName == "" {
		return nil
	}
	pv, err := n.objects.PersistentVolume(pvc.Spec.VolumeName)
	if err != nil {
		return nil
	}
	return pv
}

func usesResourceClaim(pod *corev1.Pod, name string) bool {
	for _, claim := range pod.Spec.ResourceClaims {
		if claim.ResourceClaimName != nil && *claim.ResourceClaimName == name {
			return true
		}
	}
	for _, status := range pod.Status.ResourceClaimStatuses {
		if status.ResourceClaimName != nil && *status.ResourceClaimName == name {
			return true
		}
	}
	return false
}

// PodReference names the first kind of object that pod refers to, by which a
// node that made the pod would gain access; "" when there is none.
func PodReference(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName != "" {
		return "serviceaccounts"
	}
	for range PodSecrets(pod) {
		return "secrets"
	}
	for env := range podEnv(pod) {
		if env.from != nil && env.from.ConfigMapRef != nil || env.value != nil && env.value.ConfigMapKeyRef != nil {
			return "configmaps"
		}
	}
	for range podClaims(pod) {
		return "persistentvolumeclaims"
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			return "configmaps"
		case v.Projected != nil:
			return "projected volumes"
		case v.CSI != nil:
			return "csidrivers"
		}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return "resourceclaims"
	}
	return ""
}
