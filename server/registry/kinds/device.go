package kinds

import (
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/registry"
)

func deviceClasses() *registry.Resource {
	return entry[resourcev1.DeviceClass, resourcev1.DeviceClassList](resourcev1.SchemeGroupVersion, "deviceclasses", traits[*resourcev1.DeviceClass]{
		Cluster:             true,
		Spec:                within(func(c *resourcev1.DeviceClass) *resourcev1.DeviceClassSpec { return &c.Spec }),
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), ageColumn()),
		Row:                 agedRow[*resourcev1.DeviceClass],
	})
}

func resourceClaims() *registry.Resource {
	return entry[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](resourcev1.SchemeGroupVersion, "resourceclaims", traits[*resourcev1.ResourceClaim]{
		Unnumbered:          true,
		Spec:                within(func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimSpec { return &c.Spec }),
		Status:              within(func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimStatus { return &c.Status }),
		Default:             func(c *resourcev1.ResourceClaim) { defaultDeviceClaim(&c.Spec.Devices) },
		ValidateUpdate:      validateResourceClaimUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("State", "string", "A summary of the current state (allocated, pending, reserved, etc.)."), ageColumn()),
		Row: func(c *resourcev1.ResourceClaim, now time.Time) []any {
			return []any{c.Name, resourceClaimState(c), age(c, now)}
		},
	})
}

func resourceClaimState(c *resourcev1.ResourceClaim) string {
	var states []string
	if c.DeletionTimestamp != nil {
		states = append(states, "deleted")
	}
	switch {
	case c.Status.Allocation != nil && len(c.Status.ReservedFor) > 0:
		states = append(states, "allocated", "reserved")
	case c.Status.Allocation != nil:
		states = append(states, "allocated")
	case c.DeletionTimestamp == nil:
		states = append(states, "pending")
	}
	return strings.Join(states, ",")
}

func defaultDeviceClaim(d *resourcev1.DeviceClaim) {
	for i := range d.Requests {
		if e := d.Requests[i].Exactly; e != nil {
			defaultDeviceCount(&e.AllocationMode, &e.Count)
		}
		for j := range d.Requests[i].FirstAvailable {
			s := &d.Requests[i].FirstAvailable[j]
			defaultDeviceCount(&s.AllocationMode, &s.Count)
		}
	}
}

func defaultDeviceCount(mode *resourcev1.DeviceAllocationMode, count *int64) {
	setZero(mode, resourcev1.DeviceAllocationModeExactCount)
	if *mode == resourcev1.DeviceAllocationModeExactCount {
		setZero(count, 1)
	}
}

func resourceClaimTemplates() *registry.Resource {
	return entry[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](resourcev1.SchemeGroupVersion, "resourceclaimtemplates", traits[*resourcev1.ResourceClaimTemplate]{
		Default:             func(t *resourcev1.ResourceClaimTemplate) { defaultDeviceClaim(&t.Spec.Spec.Devices) },
		ValidateUpdate:      validateResourceClaimTemplateUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), ageColumn()),
		Row:                 agedRow[*resourcev1.ResourceClaimTemplate],
	})
}

func resourceSlices() *registry.Resource {
	return entry[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](resourcev1.SchemeGroupVersion, "resourceslices", traits[*resourcev1.ResourceSlice]{
		Cluster:             true,
		Spec:                within(func(s *resourcev1.ResourceSlice) *resourcev1.ResourceSliceSpec { return &s.Spec }),
		UnconditionalUpdate: true,
		Fields: func(s *resourcev1.ResourceSlice) fields.Set {
			return fields.Set{"spec.nodeName": derefOr(s.Spec.NodeName, ""), "spec.driver": s.Spec.Driver}
		},
		Columns: columns(
			nameColumn(),
			column("Node", "string", doc(resourcev1.ResourceSliceSpec{}, "nodeName")),
			column("Driver", "string", doc(resourcev1.ResourceSliceSpec{}, "driver")),
			column("Pool", "string", doc(resourcev1.ResourcePool{}, "name")),
			ageColumn(),
		),
		Row: func(s *resourcev1.ResourceSlice, now time.Time) []any {
			return []any{s.Name, derefOr(s.Spec.NodeName, ""), s.Spec.Driver, s.Spec.Pool.Name, age(s, now)}
		},
	})
}
