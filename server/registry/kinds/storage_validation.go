package kinds

import (
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxParameters     = 512
	maxParametersSize = 256 << 10
)

func (f *faults) provisioner(at *field.Path, name string) {
	f.present(at, name, func(s string) []string { return validation.IsQualifiedName(strings.ToLower(s)) })
}

func (f *faults) parameters(at *field.Path, parameters map[string]string, mayBeEmpty bool) {
	if len(parameters) > maxParameters {
		f.add(field.TooLong(at, "", maxParameters))
		return
	}
	size := 0
	for k, v := range parameters {
		if k == "" {
			f.invalid(at, k, "field can not be empty.")
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		f.add(field.TooLong(at, "", maxParametersSize))
	}
	if len(parameters) == 0 && !mayBeEmpty {
		f.required(at, "must contain at least one key/value pair")
	}
}

func validateStorageClass(c *storagev1.StorageClass) field.ErrorList {
	var f faults
	f.provisioner(field.NewPath("provisioner"), c.Provisioner)
	f.parameters(field.NewPath("parameters"), c.Parameters, true)
	if p := c.ReclaimPolicy; p != nil && *p != "" {
		supports(&f, field.NewPath("reclaimPolicy"), *p, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
	}
	supports(&f, field.NewPath("volumeBindingMode"), *c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
	for i, term := range c.AllowedTopologies {
		f.topologyTerm(field.NewPath("allowedTopologies").Index(i), term)
	}
	return f.list
}

func (f *faults) topologyTerm(at *field.Path, t corev1.TopologySelectorTerm) {
	keys := sets.New[string]()
	for i, r := range t.MatchLabelExpressions {
		path := at.Child("matchLabelExpressions").Index(i)
		if len(r.Values) == 0 {
			f.required(path.Child("values"), "")
		}
		values := sets.New[string]()
		for j, v := range r.Values {
			if values.Has(v) {
				f.add(field.Duplicate(path.Child("values").Index(j), v))
			}
			values.Insert(v)
		}
		f.join(metavalidation.ValidateLabelName(r.Key, path.Child("key")))
		if keys.Has(r.Key) {
			f.add(field.Duplicate(path.Child("key"), r.Key))
		}
		keys.Insert(r.Key)
	}
}

func validateStorageClassUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("parameters"), c.Parameters, old.Parameters)
	immutable(&f, field.NewPath("provisioner"), c.Provisioner, old.Provisioner)
	immutable(&f, field.NewPath("reclaimPolicy"), c.ReclaimPolicy, old.ReclaimPolicy)
	immutable(&f, field.NewPath("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)
	return f.list
}

func validateVolumeAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.csiDriverName(at.Child("attacher"), a.Spec.Attacher)
	source := at.Child("source")
	switch s := a.Spec.Source; {
	case s.InlineVolumeSpec == nil && s.PersistentVolumeName == nil:
		f.required(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
	case s.InlineVolumeSpec != nil && s.PersistentVolumeName != nil:
		f.forbidden(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
	case s.PersistentVolumeName != nil && *s.PersistentVolumeName == "":
		f.required(source.Child("persistentVolumeName"), "must specify non empty persistentVolumeName")
	}
	if name := a.Spec.Source.PersistentVolumeName; name != nil {
		f.invalids(field.NewPath("spec.source.persistentVolumeName"), *name, subdomainName(*name))
	}
	f.invalids(at.Child("nodeName"), a.Spec.NodeName, subdomainName(a.Spec.NodeName))
	return f.list
}

func validateVolumeAttachmentUpdate(a, old *storagev1.VolumeAttachment) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec"), a.Spec, old.Spec)
	return f.list
}

func validateCSIDriver(d *storagev1.CSIDriver) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &d.Spec
	supports(&f, at.Child("fsGroupPolicy"), *s.FSGroupPolicy, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	audiences := sets.New[string]()
	for i, t := range s.TokenRequests {
		path := at.Child("tokenRequests").Index(i)
		if audiences.Has(t.Audience) {
			f.add(field.Duplicate(path.Child("audience"), t.Audience))
			continue
		}
		audiences.Insert(t.Audience)
		switch seconds := derefOr(t.ExpirationSeconds, 3600); {
		case seconds < 600:
			f.invalid(path.Child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes")
		case seconds > 1<<32:
			f.invalid(path.Child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds")
		}
	}
	for _, mode := range s.VolumeLifecycleModes {
		supports(&f, at.Child("volumeLifecycleModes"), mode, storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)
	}
	if p := s.NodeAllocatableUpdatePeriodSeconds; p != nil && *p < 10 {
		f.invalid(at.Child("nodeAllocatableUpdatePeriodSeconds"), *p, "must be greater than or equal to 10 seconds")
	}
	if s.ServiceAccountTokenInSecrets != nil && len(s.TokenRequests) == 0 {
		f.invalid(at.Child("serviceAccountTokenInSecrets"), s.ServiceAccountTokenInSecrets, "serviceAccountTokenInSecrets is set but no tokenRequests are specified")
	}
	return f.list
}

func validateCSIDriverUpdate(d, old *storagev1.CSIDriver) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	immutable(&f, at.Child("attachedRequired"), d.Spec.AttachRequired, old.Spec.AttachRequired)
	immutable(&f, at.Child("volumeLifecycleModes"), d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes)
	return f.list
}

func validateCSINode(n *storagev1.CSINode) field.ErrorList {
	var f faults
	names := sets.New[string]()
	for i, d := range n.Spec.Drivers {
		at := field.NewPath("spec", "drivers").Index(i)
		f.csiDriverName(at.Child("name"), d.Name)
		f.present(at.Child("nodeID"), d.NodeID, nil)
		if len(d.NodeID) > 256 {
			f.invalid(at.Child("nodeID"), d.NodeID, "must be 256 characters or less")
		}
		if a := d.Allocatable; a != nil {
			f.notNegative(at.Child("allocatable", "count"), int64(derefOr(a.Count, 0)))
		}
		if names.Has(d.Name) {
			f.add(field.Duplicate(at.Child("name"), d.Name))
		}
		names.Insert(d.Name)
		keys := sets.New[string]()
		for _, key := range d.TopologyKeys {
			if key == "" {
				f.required(at, "")
			}
			if keys.Has(key) {
				f.add(field.Duplicate(at, key))
			}
			keys.Insert(key)
			f.invalids(at, key, validation.IsQualifiedName(key))
		}
	}
	return f.list
}

func validateCSIStorageCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	var f faults
	f.selector(field.NewPath("nodeTopology"), c.NodeTopology)
	f.invalids(field.NewPath("storageClassName"), c.StorageClassName, subdomainName(c.StorageClassName))
	if c.Capacity != nil {
		f.quantity(field.NewPath("capacity"), *c.Capacity)
	}
	return f.list
}

func validateCSIStorageCapacityUpdate(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("nodeTopology"), c.NodeTopology, old.NodeTopology)
	immutable(&f, field.NewPath("storageClassName"), c.StorageClassName, old.StorageClassName)
	return f.list
}

func validateVolumeAttributesClass(c *storagev1.VolumeAttributesClass) field.ErrorList {
	var f faults
	f.provisioner(field.NewPath("driverName"), c.DriverName)
	f.parameters(field.NewPath("parameters"), c.Parameters, false)
	return f.list
}

func validateVolumeAttributesClassUpdate(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
	var f faults
	if c.DriverName != old.DriverName {
		f.forbidden(field.NewPath("driverName"), "updates to driverName are forbidden.")
	}
	if !sameValue(c.Parameters, old.Parameters) {
		f.forbidden(field.NewPath("parameters"), "updates to parameters are forbidden.")
	}
	return f.list
}

// The priority classes that the system itself has.
const (
	systemPriorityPrefix  = "system-"
	highestUserPriority   = int32(1000000000)
	systemClusterCritical = 2 * highestUserPriority
	systemNodeCritical    = systemClusterCritical + 1000
)

func validatePriorityClass(c *schedulingv1.PriorityClass) field.ErrorList {
	var f faults
	if strings.HasPrefix(c.Name, systemPriorityPrefix) {
		if why := notSystemPriority(c); why != "" {
			f.forbidden(field.NewPath("metadata", "name"), "priority class names with 'system-' prefix are reserved for system use only. error: "+why)
		}
	} else if c.Value > highestUserPriority {
		f.forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", highestUserPriority))
	}
	if c.PreemptionPolicy != nil {
		oneOf(&f, field.NewPath("preemptionPolicy"), *c.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	return f.list
}

func notSystemPriority(c *schedulingv1.PriorityClass) string {
	value, ok := map[string]int32{"system-node-critical": systemNodeCritical, "system-cluster-critical": systemClusterCritical}[c.Name]
	switch {
	case !ok:
		return fmt.Sprintf("%v is not a known system priority class", c.Name)
	case c.Value != value:
		return fmt.Sprintf("value of %v PriorityClass must be %v", c.Name, value)
	case c.GlobalDefault:
		return fmt.Sprintf("globalDefault of %v PriorityClass must be %v", c.Name, false)
	}
	return ""
}

func validatePriorityClassUpdate(c, old *schedulingv1.PriorityClass) field.ErrorList {
	var f faults
	if c.Value != old.Value {
		f.forbidden(field.NewPath("value"), "may not be changed in an update.")
	}
	immutable(&f, field.NewPath("preemptionPolicy"), c.PreemptionPolicy, old.PreemptionPolicy)
	return f.list
}

func validateRuntimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	var f faults
	f.present(field.NewPath("handler"), c.Handler, validation.IsDNS1123Label)
	if o := c.Overhead; o != nil {
		f.resources(field.NewPath("overhead"), &corev1.ResourceRequirements{Limits: o.PodFixed}, containerResourceName)
	}
	s := c.Scheduling
	if s == nil {
		return f.list
	}
	at := field.NewPath("scheduling")
	f.join(metavalidation.ValidateLabels(s.NodeSelector, at.Child("nodeSelector")))
	f.tolerations(at.Child("tolerations"), s.Tolerations)
	seen := make(map[corev1.Toleration]bool)
	for i, t := range s.Tolerations {
		key := t
		key.TolerationSeconds = nil
		if seen[key] {
			f.add(field.Duplicate(at.Child("tolerations").Index(i), t))
		}
		seen[key] = true
	}
	return f.list
}

func validateRuntimeClassUpdate(c, old *nodev1.RuntimeClass) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("handler"), c.Handler, old.Handler)
	return f.list
}

func validateLease(l *coordinationv1.Lease) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &l.Spec
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		f.invalid(at.Child("leaseDurationSeconds"), d, "must be greater than 0")
	}
	if n := s.LeaseTransitions; n != nil && *n < 0 {
		f.invalid(at.Child("leaseTransitions"), n, "must be greater than or equal to 0")
	}
	if derefOr(s.PreferredHolder, "") != "" && derefOr(s.Strategy, "") == "" {
		f.forbidden(at.Child("preferredHolder"), "may only be specified if `strategy` is defined")
	}
	return f.list
}

func validateResourceClaimUpdate(c, old *resourcev1.ResourceClaim) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec"), c.Spec, old.Spec)
	return f.list
}

func validateResourceClaimTemplateUpdate(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec"), t.Spec, old.Spec)
	return f.list
}
