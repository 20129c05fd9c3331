package kinds

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

// Finalizers that keep volumes and claims in use from going; the protection
// controllers take them off.
const (
	pvProtection  = "kubernetes.io/pv-protection"
	pvcProtection = "kubernetes.io/pvc-protection"
)

func persistentVolumes(cfg Config) *registry.Resource {
	return entry[corev1.PersistentVolume, corev1.PersistentVolumeList](corev1.SchemeGroupVersion, "persistentvolumes", traits[*corev1.PersistentVolume]{
		ShortNames: []string{"pv"}, Cluster: true, Unnumbered: true,
		Spec:    within(func(v *corev1.PersistentVolume) *corev1.PersistentVolumeSpec { return &v.Spec }),
		Status:  within(func(v *corev1.PersistentVolume) *corev1.PersistentVolumeStatus { return &v.Status }),
		Default: defaultPersistentVolume,
		PrepareCreate: func(_ context.Context, _ *registry.Registry, v *corev1.PersistentVolume) error {
			created := v.CreationTimestamp
			v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &created}
			if cfg.ProtectVolumes {
				v.Finalizers = withString(v.Finalizers, pvProtection)
			}
			return nil
		},
		Warnings:       volumeWarnings,
		Validate:       validatePersistentVolume,
		ValidateUpdate: validatePersistentVolumeUpdate,

		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Capacity", "string", doc(corev1.PersistentVolumeSpec{}, "capacity")),
			column("Access Modes", "string", doc(corev1.PersistentVolumeSpec{}, "accessModes")),
			column("Reclaim Policy", "string", doc(corev1.PersistentVolumeSpec{}, "persistentVolumeReclaimPolicy")),
			column("Status", "string", doc(corev1.PersistentVolumeStatus{}, "phase")),
			column("Claim", "string", doc(corev1.PersistentVolumeSpec{}, "claimRef")),
			column("StorageClass", "string", "StorageClass of the pv"),
			column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
			column("Reason", "string", doc(corev1.PersistentVolumeStatus{}, "reason")),
			ageColumn(),
			wide("VolumeMode", "string", doc(corev1.PersistentVolumeSpec{}, "volumeMode")),
		),
		Row: persistentVolumeRow,
	})
}

func defaultPersistentVolume(v *corev1.PersistentVolume) {
	s := &v.Spec
	setZero(&v.Status.Phase, corev1.VolumePending)
	setZero(&s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	setDefault(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundToMilli(s.Capacity)
	switch {
	case s.HostPath != nil:
		setDefault(&s.HostPath.Type, corev1.HostPathUnset)
	case s.ISCSI != nil:
		setZero(&s.ISCSI.ISCSIInterface, "default")
	case s.RBD != nil:
		setZero(&s.RBD.RBDPool, "rbd")
		setZero(&s.RBD.RadosUser, "admin")
		setZero(&s.RBD.Keyring, "/etc/ceph/keyring")
	case s.AzureDisk != nil:
		defaultAzureDisk(s.AzureDisk)
	case s.ScaleIO != nil:
		setZero(&s.ScaleIO.StorageMode, "ThinProvisioned")
		setZero(&s.ScaleIO.FSType, "xfs")
	}
}

func withString(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

func persistentVolumeRow(v *corev1.PersistentVolume, now time.Time) []any {
	claim := ""
	if c := v.Spec.ClaimRef; c != nil {
		claim = c.Namespace + "/" + c.Name
	}
	capacity := v.Spec.Capacity[corev1.ResourceStorage]
	phase := string(v.Status.Phase)
	if v.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	class := v.Spec.StorageClassName
	if beta, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		class = beta
	}
	return []any{
		v.Name, capacity.String(), accessModesCell(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy),
		phase, claim, class, textOr(v.Spec.VolumeAttributesClassName, "<unset>"), v.Status.Reason, age(v, now),
		textOr(v.Spec.VolumeMode, "<unset>"),
	}
}

func accessModesCell(modes []corev1.PersistentVolumeAccessMode) string {
	var cells []string
	for _, m := range []struct {
		mode corev1.PersistentVolumeAccessMode
		cell string
	}{
		{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"},
		{corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"},
	} {
		if slices.Contains(modes, m.mode) {
			cells = append(cells, m.cell)
		}
	}
	return strings.Join(cells, ",")
}

func persistentVolumeClaims(cfg Config) *registry.Resource {
	return entry[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](corev1.SchemeGroupVersion, "persistentvolumeclaims", traits[*corev1.PersistentVolumeClaim]{
		ShortNames: []string{"pvc"}, Unnumbered: true,
		Spec: within(func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaimSpec { return &c.Spec }),
		Status: within(func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaimStatus {
			return &c.Status
		}),
		Default: func(c *corev1.PersistentVolumeClaim) {
			setZero(&c.Status.Phase, corev1.ClaimPending)
			defaultClaimSpec(&c.Spec)
			sameDataSource(&c.Spec)
		},
		PrepareCreate: func(_ context.Context, _ *registry.Registry, c *corev1.PersistentVolumeClaim) error {
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			if cfg.ProtectVolumes {
				c.Finalizers = withString(c.Finalizers, pvcProtection)
			}
			return nil
		},
		Validate:            validatePersistentVolumeClaim,
		ValidateUpdate:      validatePersistentVolumeClaimUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Status", "string", doc(corev1.PersistentVolumeClaimStatus{}, "phase")),
			column("Volume", "string", doc(corev1.PersistentVolumeClaimSpec{}, "volumeName")),
			column("Capacity", "string", doc(corev1.PersistentVolumeClaimStatus{}, "capacity")),
			column("Access Modes", "string", doc(corev1.PersistentVolumeClaimStatus{}, "accessModes")),
			column("StorageClass", "string", "StorageClass of the pvc"),
			column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
			ageColumn(),
			wide("VolumeMode", "string", doc(corev1.PersistentVolumeClaimSpec{}, "volumeMode")),
		),
		Row: persistentVolumeClaimRow,
	})
}

// sameDataSource keeps the older of two fields for one thing in step with the
// newer. The older alone was never more than a claim or a snapshot: anything
// else in it is dropped, as it always was.
func sameDataSource(s *corev1.PersistentVolumeClaimSpec) {
	if s.DataSourceRef == nil && !claimOrSnapshot(s.DataSource) {
		s.DataSource = nil
	}
	if d := s.DataSource; d != nil && s.DataSourceRef == nil {
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: d.APIGroup, Kind: d.Kind, Name: d.Name}
	}
	if r := s.DataSourceRef; r != nil && s.DataSource == nil && derefOr(r.Namespace, "") == "" {
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: r.APIGroup, Kind: r.Kind, Name: r.Name}
	}
}

func claimOrSnapshot(d *corev1.TypedLocalObjectReference) bool {
	if d == nil {
		return false
	}
	group := derefOr(d.APIGroup, "")
	return d.Kind == "PersistentVolumeClaim" && group == "" || d.Kind == "VolumeSnapshot" && group == "snapshot.storage.k8s.io"
}

func persistentVolumeClaimRow(c *corev1.PersistentVolumeClaim, now time.Time) []any {
	phase := string(c.Status.Phase)
	if c.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	capacity, modes := "", ""
	if c.Spec.VolumeName != "" {
		q := c.Status.Capacity[corev1.ResourceStorage]
		capacity, modes = q.String(), accessModesCell(c.Status.AccessModes)
	}
	class := derefOr(c.Spec.StorageClassName, "")
	if beta, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		class = beta
	}
	return []any{
		c.Name, phase, c.Spec.VolumeName, capacity, modes, class,
		textOr(c.Spec.VolumeAttributesClassName, "<unset>"), age(c, now), textOr(c.Spec.VolumeMode, "<unset>"),
	}
}
