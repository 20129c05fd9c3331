package kinds

import (
	corev1 "k8s.io/api/core/v1"
)

func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	switch {
	case v.Secret != nil:
		setDefault(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	case v.ConfigMap != nil:
		setDefault(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	case v.DownwardAPI != nil:
		setDefault(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownwardItems(v.DownwardAPI.Items)
	case v.Projected != nil:
		setDefault(&v.Projected.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		defaultProjections(v.Projected.Sources)
	case v.HostPath != nil:
		setDefault(&v.HostPath.Type, corev1.HostPathUnset)
	case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
		defaultClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec)
	case v.Image != nil:
		setZero(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	case v.ISCSI != nil:
		setZero(&v.ISCSI.ISCSIInterface, "default")
	case v.RBD != nil:
		setZero(&v.RBD.RBDPool, "rbd")
		setZero(&v.RBD.RadosUser, "admin")
		setZero(&v.RBD.Keyring, "/etc/ceph/keyring")
	case v.AzureDisk != nil:
		defaultAzureDisk(v.AzureDisk)
	case v.ScaleIO != nil:
		setZero(&v.ScaleIO.StorageMode, "ThinProvisioned")
		setZero(&v.ScaleIO.FSType, "xfs")
	}
}

func defaultDownwardItems(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			setZero(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

func defaultProjections(sources []corev1.VolumeProjection) {
	for i := range sources {
		if s := sources[i].DownwardAPI; s != nil {
			defaultDownwardItems(s.Items)
		}
		if s := sources[i].ServiceAccountToken; s != nil {
			setDefault(&s.ExpirationSeconds, 3600)
		}
	}
}

func defaultAzureDisk(d *corev1.AzureDiskVolumeSource) {
	setDefault(&d.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	setDefault(&d.FSType, "ext4")
	setDefault(&d.ReadOnly, false)
	setDefault(&d.Kind, corev1.AzureSharedBlobDisk)
}

func defaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	setDefault(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundToMilli(s.Resources.Limits)
	roundToMilli(s.Resources.Requests)
}
