package kinds

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func accessModes(f *faults, at *field.Path, modes []corev1.PersistentVolumeAccessMode) {
	if len(modes) == 0 {
		f.required(at, "at least 1 access mode is required")
	}
	for _, m := range modes {
		supports(f, at, m, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
	}
	if len(modes) > 1 && slices.Contains(modes, corev1.ReadWriteOncePod) {
		f.forbidden(at, "may not use ReadWriteOncePod with other access modes")
	}
}

func (f *faults) claimSpec(at *field.Path, s *corev1.PersistentVolumeClaimSpec) {
	accessModes(f, at.Child("accessModes"), s.AccessModes)
	f.selector(at.Child("selector"), s.Selector)
	size, ok := s.Resources.Requests[corev1.ResourceStorage]
	switch path := at.Child("resources").Key("storage"); {
	case !ok:
		f.required(path, "")
	case size.Cmp(resource.Quantity{}) <= 0:
		f.invalid(path, size.String(), "must be greater than zero")
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		f.invalids(at.Child("storageClassName"), *s.StorageClassName, subdomainName(*s.StorageClassName))
	}
	if s.VolumeMode != nil {
		supports(f, at.Child("volumeMode"), *s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
	f.dataSources(at, s)
	if name := s.VolumeAttributesClassName; name != nil && *name != "" {
		f.invalids(at.Child("volumeAttributesClassName"), *name, subdomainName(*name))
	}
}

func (f *faults) dataSources(at *field.Path, s *corev1.PersistentVolumeClaimSpec) {
	source, ref := s.DataSource, s.DataSourceRef
	if source != nil {
		f.dataSource(at.Child("dataSource"), source.APIGroup, source.Kind, source.Name)
	}
	if ref == nil {
		return
	}
	f.dataSource(at.Child("dataSourceRef"), ref.APIGroup, ref.Kind, ref.Name)
	elsewhere := derefOr(ref.Namespace, "")
	if elsewhere != "" {
		f.invalids(at.Child("dataSourceRef", "namespace"), elsewhere, validation.IsDNS1123Label(elsewhere))
	}
	switch {
	case source == nil:
	case elsewhere != "":
		f.invalid(at, at.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified")
	case !sameValue(source.APIGroup, ref.APIGroup) || source.Kind != ref.Kind || source.Name != ref.Name:
		f.invalid(at, at.Child("dataSource"), "must match dataSourceRef")
	}
}

func (f *faults) dataSource(at *field.Path, group *string, kind, name string) {
	f.present(at.Child("name"), name, nil)
	f.present(at.Child("kind"), kind, nil)
	switch g := derefOr(group, ""); {
	case g != "":
		f.invalids(at.Child("apiGroup"), g, validation.IsDNS1123Subdomain(g))
	case kind != "PersistentVolumeClaim":
		f.invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
	}
}

func validatePersistentVolumeClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	var f faults
	f.claimSpec(field.NewPath("spec"), &c.Spec)
	return f.list
}

// validatePersistentVolumeClaimUpdate lets a bound claim grow, and the binder
// name the volume once.
func validatePersistentVolumeClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	var f faults
	now, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = now.VolumeName
	}
	if was.StorageClassName == nil {
		was.StorageClassName = now.StorageClassName
	}
	if c.Status.Phase == corev1.ClaimBound {
		if now.Resources.Requests != nil {
			now.Resources.Requests[corev1.ResourceStorage] = was.Resources.Requests[corev1.ResourceStorage]
		}
		now.VolumeAttributesClassName = was.VolumeAttributesClassName
	}
	spec := field.NewPath("spec")
	if !sameValue(*now, *was) {
		f.forbidden(spec, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n"+diff.Diff(*was, *now))
	}
	size, oldSize, capacity := c.Spec.Resources.Requests["storage"], old.Spec.Resources.Requests["storage"], old.Status.Capacity["storage"]
	if size.Cmp(oldSize) < 0 && size.Cmp(capacity) <= 0 {
		f.forbidden(spec.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	return f.list
}

func validatePersistentVolume(v *corev1.PersistentVolume) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &v.Spec
	if len(s.AccessModes) == 0 {
		f.required(at.Child("accessModes"), "")
	}
	if len(s.AccessModes) > 0 {
		accessModes(&f, at.Child("accessModes"), s.AccessModes)
	}
	size, ok := s.Capacity[corev1.ResourceStorage]
	if len(s.Capacity) == 0 {
		f.required(at.Child("capacity"), "")
	}
	if !ok || len(s.Capacity) > 1 {
		f.add(field.NotSupported(at.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	} else if size.Cmp(resource.Quantity{}) <= 0 {
		f.invalid(at.Child("capacity").Key("storage"), size.String(), "must be greater than zero")
	}
	if s.PersistentVolumeReclaimPolicy != "" {
		supports(&f, at.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy,
			corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
	}
	if a := s.NodeAffinity; a != nil {
		if a.Required == nil {
			f.required(at.Child("nodeAffinity", "required"), "must specify required node constraints")
		}
		f.nodeSelector(at.Child("nodeAffinity", "required"), a.Required)
	}
	f.persistentSource(at, v)
	if s.StorageClassName != "" {
		f.invalids(at.Child("storageClassName"), s.StorageClassName, subdomainName(s.StorageClassName))
	}
	if s.VolumeMode != nil {
		supports(&f, at.Child("volumeMode"), *s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
	return f.list
}

func (f *faults) persistentSource(at *field.Path, v *corev1.PersistentVolume) {
	s := &v.Spec.PersistentVolumeSource
	if *s == (corev1.PersistentVolumeSource{}) {
		f.required(at, "must specify a volume type")
	}
	switch {
	case s.HostPath != nil:
		f.hostPath(at.Child("hostPath"), s.HostPath)
		if s.HostPath.Path == "/" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
			f.forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
		}
	case s.NFS != nil:
		f.nfs(at.Child("nfs"), s.NFS)
	case s.Local != nil:
		if s.Local.Path == "" {
			f.required(at.Child("local", "path"), "")
		} else {
			f.noBacksteps(at.Child("local", "path"), s.Local.Path)
		}
		if v.Spec.NodeAffinity == nil {
			f.required(at.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	case s.CSI != nil:
		f.csiDriverName(at.Child("csi", "driver"), s.CSI.Driver)
		f.present(at.Child("csi", "volumeHandle"), s.CSI.VolumeHandle, nil)
	}
}

func validatePersistentVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	var f faults
	now, was := v.Spec.PersistentVolumeSource.DeepCopy(), old.Spec.PersistentVolumeSource.DeepCopy()
	if now.CSI != nil && was.CSI != nil { // the expander may learn its secret later
		now.CSI.ControllerExpandSecretRef, was.CSI.ControllerExpandSecretRef = nil, nil
	}
	if !sameValue(*now, *was) {
		f.forbidden(field.NewPath("spec", "persistentvolumesource"), "spec.persistentvolumesource is immutable after creation\n"+diff.Diff(*was, *now))
	}
	immutable(&f, field.NewPath("volumeMode"), v.Spec.VolumeMode, old.Spec.VolumeMode)
	if old.Spec.NodeAffinity != nil && old.Spec.NodeAffinity.Required != nil {
		if !sameValue(v.Spec.NodeAffinity, old.Spec.NodeAffinity) {
			f.invalid(field.NewPath("nodeAffinity"), v.Spec.NodeAffinity, "field is immutable, except for updating from beta label to GA")
		}
	}
	return f.list
}
