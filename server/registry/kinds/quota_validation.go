package kinds

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	var f faults
	seen := sets.New[corev1.LimitType]()
	for i := range l.Spec.Limits {
		item, path := &l.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
		f.limitType(path.Child("type"), item.Type)
		if seen.Has(item.Type) {
			f.add(field.Duplicate(path.Child("type"), item.Type))
		}
		seen.Insert(item.Type)
		f.limitItem(path, item)
	}
	return f.list
}

func (f *faults) limitType(at *field.Path, t corev1.LimitType) {
	if msgs := validation.IsQualifiedName(string(t)); len(msgs) > 0 {
		f.invalids(at, t, msgs)
		return
	}
	standard := t == corev1.LimitTypePod || t == corev1.LimitTypeContainer || t == corev1.LimitTypePersistentVolumeClaim
	if !strings.Contains(string(t), "/") && !standard {
		f.invalid(at, t, "must be a standard limit type or fully qualified")
	}
}

func (f *faults) limitItem(at *field.Path, item *corev1.LimitRangeItem) {
	perPod := item.Type == corev1.LimitTypePod
	if perPod && len(item.Default) > 0 {
		f.forbidden(at.Child("default"), "may not be specified when `type` is 'Pod'")
	}
	if perPod && len(item.DefaultRequest) > 0 {
		f.forbidden(at.Child("defaultRequest"), "may not be specified when `type` is 'Pod'")
	}
	keys := sets.New[corev1.ResourceName]()
	for name, list := range map[string]corev1.ResourceList{
		"max": item.Max, "min": item.Min, "default": item.Default,
		"defaultRequest": item.DefaultRequest, "maxLimitRequestRatio": item.MaxLimitRequestRatio,
	} {
		if perPod && strings.HasPrefix(name, "default") {
			continue
		}
		for _, key := range sortedKeys(list) {
			keys.Insert(key)
			path := at.Child(name).Key(string(key))
			if perPod || item.Type == corev1.LimitTypeContainer {
				containerResourceName(f, path, key)
			} else {
				resourceName(f, path, key)
			}
		}
	}
	_, least := item.Min[corev1.ResourceStorage]
	_, most := item.Max[corev1.ResourceStorage]
	if item.Type == corev1.LimitTypePersistentVolumeClaim && !least && !most {
		f.required(at.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
	}
	for _, key := range sets.List(keys) {
		f.limitOrder(at, item, key)
	}
}

// limitOrder asks for min ≤ default request ≤ default ≤ max.
func (f *faults) limitOrder(at *field.Path, item *corev1.LimitRangeItem, key corev1.ResourceName) {
	above := func(low, high corev1.ResourceList) (a, b resource.Quantity, above bool) {
		a, haveLow := low[key]
		b, haveHigh := high[key]
		return a, b, haveLow && haveHigh && a.Cmp(b) > 0
	}
	at1 := func(name string) *field.Path { return at.Child(name).Key(string(key)) }
	if a, b, bad := above(item.Min, item.Max); bad {
		f.invalid(at1("min"), a, fmt.Sprintf("min value %s is greater than max value %s", a.String(), b.String()))
	}
	if item.Type == corev1.LimitTypePod {
		return
	}
	if a, b, bad := above(item.Min, item.DefaultRequest); bad {
		f.invalid(at1("defaultRequest"), b, fmt.Sprintf("min value %s is greater than default request value %s", a.String(), b.String()))
	}
	if a, b, bad := above(item.DefaultRequest, item.Max); bad {
		f.invalid(at1("defaultRequest"), a, fmt.Sprintf("default request value %s is greater than max value %s", a.String(), b.String()))
	}
	if a, b, bad := above(item.DefaultRequest, item.Default); bad {
		f.invalid(at1("defaultRequest"), a, fmt.Sprintf("default request value %s is greater than default limit value %s", a.String(), b.String()))
	}
	if a, b, bad := above(item.Min, item.Default); bad {
		f.invalid(at1("default"), a, fmt.Sprintf("min value %s is greater than default value %s", a.String(), b.String()))
	}
	if a, b, bad := above(item.Default, item.Max); bad {
		f.invalid(at1("default"), b, fmt.Sprintf("default value %s is greater than max value %s", a.String(), b.String()))
	}
	f.limitRatio(at1("maxLimitRequestRatio"), item, key)
}

func (f *faults) limitRatio(at *field.Path, item *corev1.LimitRangeItem, key corev1.ResourceName) {
	ratio, ok := item.MaxLimitRequestRatio[key]
	if !ok {
		return
	}
	if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
		f.invalid(at, ratio, fmt.Sprintf("ratio %s is less than 1", ratio.String()))
	}
	least, haveMin := item.Min[key]
	most, haveMax := item.Max[key]
	if !haveMin || !haveMax {
		return
	}
	if limit := most.AsApproximateFloat64() / least.AsApproximateFloat64(); ratio.AsApproximateFloat64() > limit {
		f.invalid(at, ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), limit))
	}
}

func validateResourceQuota(q *corev1.ResourceQuota) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.quotaList(at.Child("hard"), q.Spec.Hard)
	f.quotaScopes(at, &q.Spec)
	f.quotaSelector(at.Child("scopeSelector", "matchExpressions"), &q.Spec)
	return f.list
}

func (f *faults) quotaList(at *field.Path, list corev1.ResourceList) {
	for _, name := range sortedKeys(list) {
		path := at.Key(string(name))
		if msgs := validation.IsQualifiedName(string(name)); len(msgs) > 0 {
			f.invalids(path, name, msgs)
		} else if !strings.Contains(string(name), "/") && !isQuotaResource(name) {
			f.invalid(path, name, "must be a standard resource for quota")
		}
		f.resourceQuantity(path, name, list[name])
	}
}

func isQuotaResource(name corev1.ResourceName) bool {
	return isComputeQuota(name) || isObjectQuota(name) || isHugePage(name) || strings.HasPrefix(string(name), "requests.hugepages-")
}

func isComputeQuota(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return false
}

func isObjectQuota(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers, corev1.ResourceRequestsStorage:
		return true
	}
	return false
}

// scopeFits tells whether quota of name can be narrowed to scope.
func scopeFits(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return name == corev1.ResourcePods || isComputeQuota(name)
	}
	return true
}

func quotaScopeNames() []corev1.ResourceQuotaScope {
	return []corev1.ResourceQuotaScope{
		corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating,
		corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity,
		corev1.ResourceQuotaScopeVolumeAttributesClass,
	}
}

func conflictingScopes(s sets.Set[corev1.ResourceQuotaScope]) bool {
	return s.HasAll(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort) ||
		s.HasAll(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating)
}

func (f *faults) quotaScopes(at *field.Path, s *corev1.ResourceQuotaSpec) {
	path := at.Child("scopes")
	for _, scope := range s.Scopes {
		if !slices.Contains(quotaScopeNames(), scope) {
			f.invalid(path, s.Scopes, "unsupported scope")
		}
		for _, name := range sortedKeys(s.Hard) {
			if isQuotaResource(name) && !scopeFits(scope, name) {
				f.invalid(path, s.Scopes, "unsupported scope applied to resource")
			}
		}
	}
	if conflictingScopes(sets.New(s.Scopes...)) {
		f.invalid(path, s.Scopes, "conflicting scopes")
	}
}

func (f *faults) quotaSelector(at *field.Path, s *corev1.ResourceQuotaSpec) {
	if s.ScopeSelector == nil {
		return
	}
	scopes := sets.New[corev1.ResourceQuotaScope]()
	for _, r := range s.ScopeSelector.MatchExpressions {
		scopes.Insert(r.ScopeName)
		if !slices.Contains(quotaScopeNames(), r.ScopeName) {
			f.invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope")
		}
		for _, name := range sortedKeys(s.Hard) {
			if isQuotaResource(name) && !scopeFits(r.ScopeName, name) {
				f.invalid(at, s.ScopeSelector, "unsupported scope applied to resource")
			}
		}
		switch r.ScopeName {
		case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeTerminating,
			corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			if r.Operator != corev1.ScopeSelectorOpExists {
				f.invalid(at.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
			}
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				f.required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				f.invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
			}
		default:
			f.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
	}
	if conflictingScopes(scopes) {
		f.invalid(at, s.Scopes, "conflicting scopes")
	}
}

func validateResourceQuotaUpdate(q, old *corev1.ResourceQuota) field.ErrorList {
	var f faults
	if !sets.New(q.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
		f.invalid(field.NewPath("spec", "scopes"), q.Spec.Scopes, "field is immutable")
	}
	return f.list
}

func validateResourceQuotaStatus(q, _ *corev1.ResourceQuota) field.ErrorList {
	var f faults
	f.quotaList(field.NewPath("status", "hard"), q.Status.Hard)
	f.quotaList(field.NewPath("status", "used"), q.Status.Used)
	return f.list
}
