package kinds

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"orch/server/registry"
)

func storageClasses() *registry.Resource {
	return entry[storagev1.StorageClass, storagev1.StorageClassList](storagev1.SchemeGroupVersion, "storageclasses", traits[*storagev1.StorageClass]{
		ShortNames: []string{"sc"}, Cluster: true,
		Default: func(c *storagev1.StorageClass) {
			setDefault(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			setDefault(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		},
		Validate:            validateStorageClass,
		ValidateUpdate:      validateStorageClassUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Provisioner", "string", doc(storagev1.StorageClass{}, "provisioner")),
			column("ReclaimPolicy", "string", doc(storagev1.StorageClass{}, "reclaimPolicy")),
			column("VolumeBindingMode", "string", doc(storagev1.StorageClass{}, "volumeBindingMode")),
			column("AllowVolumeExpansion", "string", doc(storagev1.StorageClass{}, "allowVolumeExpansion")),
			ageColumn(),
		),
		Row: func(c *storagev1.StorageClass, now time.Time) []any {
			name := c.Name
			if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" ||
				c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true" {
				name += " (default)"
			}
			return []any{
				name, c.Provisioner, textOr(c.ReclaimPolicy, "Delete"), textOr(c.VolumeBindingMode, "Immediate"),
				derefOr(c.AllowVolumeExpansion, false), age(c, now),
			}
		},
	})
}

func volumeAttachments() *registry.Resource {
	attacher := column("Attacher", "string", doc(storagev1.VolumeAttachmentSpec{}, "attacher"))
	attacher.Format = "name"
	return entry[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](storagev1.SchemeGroupVersion, "volumeattachments", traits[*storagev1.VolumeAttachment]{
		Cluster: true, Unnumbered: true,
		Spec:           within(func(a *storagev1.VolumeAttachment) *storagev1.VolumeAttachmentSpec { return &a.Spec }),
		Status:         within(func(a *storagev1.VolumeAttachment) *storagev1.VolumeAttachmentStatus { return &a.Status }),
		Validate:       validateVolumeAttachment,
		ValidateUpdate: validateVolumeAttachmentUpdate,
		Columns: columns(
			nameColumn(),
			attacher,
			column("PV", "string", doc(storagev1.VolumeAttachmentSource{}, "persistentVolumeName")),
			column("Node", "string", doc(storagev1.VolumeAttachmentSpec{}, "nodeName")),
			column("Attached", "boolean", doc(storagev1.VolumeAttachmentStatus{}, "attached")),
			ageColumn(),
		),
		Row: func(a *storagev1.VolumeAttachment, now time.Time) []any {
			return []any{
				a.Name, a.Spec.Attacher, derefOr(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName,
				a.Status.Attached, age(a, now),
			}
		},
	})
}

func csiDrivers() *registry.Resource {
	return entry[storagev1.CSIDriver, storagev1.CSIDriverList](storagev1.SchemeGroupVersion, "csidrivers", traits[*storagev1.CSIDriver]{
		Cluster: true, Unnumbered: true,
		Spec:           within(func(d *storagev1.CSIDriver) *storagev1.CSIDriverSpec { return &d.Spec }),
		Default:        defaultCSIDriver,
		Warnings:       csiDriverWarnings,
		Validate:       validateCSIDriver,
		ValidateUpdate: validateCSIDriverUpdate,
		Columns: columns(
			nameColumn(),
			column("AttachRequired", "boolean", doc(storagev1.CSIDriverSpec{}, "attachRequired")),
			column("PodInfoOnMount", "boolean", doc(storagev1.CSIDriverSpec{}, "podInfoOnMount")),
			column("StorageCapacity", "boolean", doc(storagev1.CSIDriverSpec{}, "storageCapacity")),
			column("TokenRequests", "string", doc(storagev1.CSIDriverSpec{}, "tokenRequests")),
			column("RequiresRepublish", "boolean", doc(storagev1.CSIDriverSpec{}, "requiresRepublish")),
			column("Modes", "string", doc(storagev1.CSIDriverSpec{}, "volumeLifecycleModes")),
			ageColumn(),
		),
		Row: csiDriverRow,
	})
}

func defaultCSIDriver(d *storagev1.CSIDriver) {
	s := &d.Spec
	setDefault(&s.AttachRequired, true)
	setDefault(&s.PodInfoOnMount, false)
	setDefault(&s.StorageCapacity, false)
	setDefault(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	setDefault(&s.RequiresRepublish, false)
	setDefault(&s.SELinuxMount, false)
	setDefault(&s.PreventPodSchedulingIfMissing, false)
	if len(s.VolumeLifecycleModes) == 0 {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
}

func csiDriverRow(d *storagev1.CSIDriver, now time.Time) []any {
	var modes, audiences []string
	for _, m := range d.Spec.VolumeLifecycleModes {
		modes = append(modes, string(m))
	}
	for _, t := range d.Spec.TokenRequests {
		audiences = append(audiences, t.Audience)
	}
	tokens := strings.Join(audiences, ",")
	if d.Spec.TokenRequests == nil {
		tokens = "<unset>"
	}
	return []any{
		d.Name, derefOr(d.Spec.AttachRequired, true), derefOr(d.Spec.PodInfoOnMount, false), derefOr(d.Spec.StorageCapacity, false),
		tokens, derefOr(d.Spec.RequiresRepublish, false), orText(strings.Join(modes, ","), "<none>"), age(d, now),
	}
}

func csiNodes() *registry.Resource {
	return entry[storagev1.CSINode, storagev1.CSINodeList](storagev1.SchemeGroupVersion, "csinodes", traits[*storagev1.CSINode]{
		Cluster:  true,
		Validate: validateCSINode,
		Columns:  columns(nameColumn(), column("Drivers", "integer", "Drivers indicates the number of CSI drivers registered on the node"), ageColumn()),
		Row: func(n *storagev1.CSINode, now time.Time) []any {
			return []any{n.Name, int64(len(n.Spec.Drivers)), age(n, now)}
		},
	})
}

func csiStorageCapacities() *registry.Resource {
	return entry[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](storagev1.SchemeGroupVersion, "csistoragecapacities", traits[*storagev1.CSIStorageCapacity]{
		Validate:       validateCSIStorageCapacity,
		ValidateUpdate: validateCSIStorageCapacityUpdate,
		Columns: columns(
			nameColumn(),
			column("StorageClassName", "string", doc(storagev1.CSIStorageCapacity{}, "storageClassName")),
			column("Capacity", "string", doc(storagev1.CSIStorageCapacity{}, "capacity")),
		),
		Row: func(c *storagev1.CSIStorageCapacity, _ time.Time) []any {
			capacity := "<unset>"
			if c.Capacity != nil {
				capacity = c.Capacity.String()
			}
			return []any{c.Name, c.StorageClassName, capacity}
		},
	})
}

func volumeAttributesClasses() *registry.Resource {
	return entry[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](storagev1.SchemeGroupVersion, "volumeattributesclasses", traits[*storagev1.VolumeAttributesClass]{
		ShortNames: []string{"vac"}, Cluster: true,
		Validate:            validateVolumeAttributesClass,
		ValidateUpdate:      validateVolumeAttributesClassUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("DriverName", "string", doc(storagev1.VolumeAttributesClass{}, "driverName")), ageColumn()),
		Row: func(c *storagev1.VolumeAttributesClass, now time.Time) []any {
			return []any{c.Name, c.DriverName, age(c, now)}
		},
	})
}
