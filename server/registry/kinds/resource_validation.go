package kinds

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"orch/server/registry/document"
)

// resourceName checks the name of any compute resource.
func resourceName(f *faults, at *field.Path, name corev1.ResourceName) bool {
	if msgs := validation.IsQualifiedName(string(name)); len(msgs) > 0 {
		f.invalids(at, name, msgs)
		return false
	}
	if !strings.Contains(string(name), "/") && !isStandardResource(name) {
		f.invalid(at, name, "must be a standard resource type or fully qualified")
		return false
	}
	return true
}

func containerResourceName(f *faults, at *field.Path, name corev1.ResourceName) {
	resourceName(f, at, name)
	switch {
	case !strings.Contains(string(name), "/"):
		if !isStandardContainerResource(name) {
			f.invalid(at, name, "must be a standard resource for containers")
		}
	case !isNativeResource(name) && !isExtendedResource(name):
		f.invalid(at, name, "doesn't follow extended resource name standard")
	}
}

func podResourceName(f *faults, at *field.Path, name corev1.ResourceName) {
	if resourceName(f, at, name) && !resourcehelper.IsSupportedPodLevelResource(name) {
		f.add(field.NotSupported(at, name, sets.List(resourcehelper.SupportedPodLevelResources())))
	}
}

// overcommits tells whether a limit may be above the request.
func overcommits(name corev1.ResourceName) bool { return isNativeResource(name) && !isHugePage(name) }

func (f *faults) resources(at *field.Path, r *corev1.ResourceRequirements, nameCheck func(*faults, *field.Path, corev1.ResourceName)) {
	compute, hugePages := false, false
	note := func(path *field.Path, name corev1.ResourceName, q resource.Quantity) {
		nameCheck(f, path, name)
		f.resourceQuantity(path, name, q)
		compute = compute || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		if isHugePage(name) {
			hugePages = true
			f.hugePages(path, name, q)
		}
	}
	for _, name := range sortedKeys(r.Limits) {
		note(at.Child("limits").Key(string(name)), name, r.Limits[name])
	}
	for _, name := range sortedKeys(r.Requests) {
		q := r.Requests[name]
		note(at.Child("requests").Key(string(name)), name, q)
		limit, limited := r.Limits[name]
		switch {
		case !limited && !overcommits(name):
			f.required(at.Child("limits"), "Limit must be set for non overcommitable resources")
		case limited && !overcommits(name) && q.Cmp(limit) != 0:
			f.invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case limited && q.Cmp(limit) > 0:
			f.invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
	}
	if hugePages && !compute {
		f.forbidden(at, "HugePages require cpu or memory")
	}
}

func (f *faults) hugePages(at *field.Path, name corev1.ResourceName, q resource.Quantity) {
	text := strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix)
	if err := document.CheckQuantity(text); err != nil {
		f.invalid(at, q.String(), err.Error())
		return
	}
	size, err := resource.ParseQuantity(text)
	if err != nil || size.Sign() <= 0 || q.Value()%size.Value() != 0 {
		f.invalid(at, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))
	}
}

func (f *faults) claimNames(at *field.Path, claims []corev1.ResourceClaim, known sets.Set[string]) {
	seen := sets.New[string]()
	for i, c := range claims {
		if c.Name == "" {
			f.required(at.Index(i), "")
			continue
		}
		key := c.Name
		if c.Request != "" {
			f.invalids(at.Index(i).Child("request"), c.Request, validation.IsDNS1123Label(c.Request))
			key += "/" + c.Request
		}
		if seen.Has(key) || seen.Has(c.Name) {
			f.add(field.Duplicate(at.Index(i), key))
		}
		seen.Insert(key)
		if known.Has(c.Name) {
			continue
		}
		missing := field.NotFound(at.Index(i), c.Name)
		missing.Detail = "must be one of the names in pod.spec.resourceClaims which is empty"
		if len(known) > 0 {
			missing.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(sets.List(known), ", ")
		}
		f.add(missing)
	}
}

// podResources holds the pod's own resources against those of its containers (KEP-2837).
func (f *faults) podResources(at *field.Path, s *corev1.PodSpec) {
	r, path := s.Resources, at.Child("resources")
	if r == nil {
		return
	}
	if r.Claims != nil {
		f.forbidden(path.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	f.resources(path, r, podResourceName)
	pod := &corev1.Pod{Spec: *s}
	asked := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range sortedKeys(asked) {
		total := asked[name]
		if own, ok := r.Requests[name]; ok && total.Cmp(own) > 0 {
			f.invalid(path.Child("requests").Key(string(name)), own.String(), "must be greater than or equal to aggregate container requests of "+total.String())
		}
	}
	for i := range s.Containers {
		for _, name := range sortedKeys(s.Containers[i].Resources.Limits) {
			limit := s.Containers[i].Resources.Limits[name]
			if own, ok := r.Limits[name]; ok && limit.Cmp(own) > 0 {
				f.invalid(path.Child("containers").Index(i).Key(string(name)).Child("limits"), limit.String(), "must be less than or equal to pod limits of "+own.String())
			}
		}
	}
}
