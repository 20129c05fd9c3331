package kinds

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// faults gathers what is wrong with an object, in upstream's words, because
// people and tests look for them.
type faults struct{ list field.ErrorList }

func (f *faults) add(errs ...*field.Error)               { f.list = append(f.list, errs...) }
func (f *faults) join(errs field.ErrorList)              { f.list = append(f.list, errs...) }
func (f *faults) required(at *field.Path, detail string) { f.add(field.Required(at, detail)) }
func (f *faults) invalid(at *field.Path, value any, detail string) {
	f.add(field.Invalid(at, value, detail))
}
func (f *faults) forbidden(at *field.Path, detail string) { f.add(field.Forbidden(at, detail)) }

// invalids adds one error for each message of a validation function.
func (f *faults) invalids(at *field.Path, value any, messages []string) {
	for _, m := range messages {
		f.invalid(at, value, m)
	}
}

// present asks for a value that is there and, by check, well formed.
func (f *faults) present(at *field.Path, value string, check func(string) []string) {
	if value == "" {
		f.required(at, "")
		return
	}
	if check != nil {
		f.invalids(at, value, check(value))
	}
}

func (f *faults) notNegative(at *field.Path, value int64) {
	f.join(apivalidation.ValidateNonnegativeField(value, at))
}

func (f *faults) positive(at *field.Path, value int64) {
	if value <= 0 {
		f.invalid(at, value, "must be greater than zero")
	}
}

// Limits of a label selector in an object, as of one in a request: it is held
// against every object that comes by.
const (
	maxRequirements = registry.MaxRequirements
	maxValues       = registry.MaxRequirementValues
)

func (f *faults) selector(at *field.Path, s *metav1.LabelSelector) {
	if s != nil {
		values := 0
		for _, e := range s.MatchExpressions {
			values += len(e.Values)
		}
		if n := len(s.MatchLabels) + len(s.MatchExpressions); n > maxRequirements || values > maxValues {
			f.invalid(at, fmt.Sprintf("%d requirements with %d values", n, values),
				fmt.Sprintf("must have at most %d requirements with %d values", maxRequirements, maxValues))
			return
		}
	}
	f.join(metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, at))
}

func (f *faults) portNumberOrName(at *field.Path, port intstr.IntOrString) {
	if port.Type == intstr.Int {
		f.invalids(at, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
		return
	}
	f.invalids(at, port.StrVal, validation.IsValidPortName(port.StrVal))
}

// oneOf refuses a value that is not among supported; an absent one is Required.
func oneOf[T ~string](f *faults, at *field.Path, value T, supported ...T) {
	if value == "" {
		f.required(at, "")
		return
	}
	supports(f, at, value, supported...)
}

func supports[T ~string](f *faults, at *field.Path, value T, supported ...T) {
	if !slices.Contains(supported, value) {
		f.add(field.NotSupported(at, value, supported))
	}
}

func immutable(f *faults, at *field.Path, value, old any) {
	f.join(apivalidation.ValidateImmutableField(value, old, at))
}

// names of other objects, as the API checks them in references.
func subdomainName(name string) []string { return apivalidation.NameIsDNSSubdomain(name, false) }

// legacyIP checks an address in a field that once took forms like "010.0.0.1",
// and takes them still where they are.
func legacyIP(at *field.Path, ip string) field.ErrorList {
	if errs := validation.IsValidIPForLegacyField(at, ip, false, nil); len(errs) > 0 {
		return errs
	}
	return validation.IsValidIPForLegacyField(at, ip, true, nil).WithOrigin(registry.Tightened)
}

// legacyCIDR does the same for ranges, "10.0.0.1/8" among them.
func legacyCIDR(at *field.Path, cidr string) field.ErrorList {
	if errs := validation.IsValidCIDRForLegacyField(at, cidr, false, nil); len(errs) > 0 {
		return errs
	}
	return validation.IsValidCIDRForLegacyField(at, cidr, true, nil).WithOrigin(registry.Tightened)
}

// ipFault is nil for an address that may be stored.
func (f *faults) ip(at *field.Path, value string) {
	f.join(legacyIP(at, value))
}

func (f *faults) quantity(at *field.Path, q resource.Quantity) {
	if q.Cmp(resource.Quantity{}) < 0 {
		f.add(field.Invalid(at, q.String(), apivalidation.IsNegativeErrorMsg).WithOrigin("minimum"))
	}
}

// resourceQuantity checks the amount of a resource; extended resources and
// counts come in whole numbers.
func (f *faults) resourceQuantity(at *field.Path, name corev1.ResourceName, q resource.Quantity) {
	f.quantity(at, q)
	if isIntegerResource(name) && q.MilliValue()%1000 != 0 {
		f.add(field.Invalid(at, q, "must be an integer"))
	}
}

func isStandardContainerResource(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || isHugePage(name)
}

func isExtendedResource(name corev1.ResourceName) bool {
	if isNativeResource(name) || strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

func isNativeResource(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

func isIntegerResource(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return isExtendedResource(name)
}

func isStandardResource(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
		corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps, corev1.ResourceServicesNodePorts,
		corev1.ResourceServicesLoadBalancers, corev1.ResourceStorage, corev1.ResourceRequestsStorage:
		return true
	}
	return isStandardContainerResource(name) || strings.HasPrefix(string(name), "requests.hugepages-")
}

// sortedKeys makes errors about maps come in one order.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return sets.List(sets.KeySet(m))
}
