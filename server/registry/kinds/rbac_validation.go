package kinds

import (
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (f *faults) policyRules(rules []rbacv1.PolicyRule, namespaced bool) {
	for i, r := range rules {
		at := field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			f.required(at.Child("verbs"), "verbs must contain at least one value")
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				f.invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				f.invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			f.required(at.Child("apiGroups"), "resource rules must supply at least one api group")
		}
		if len(r.Resources) == 0 {
			f.required(at.Child("resources"), "resource rules must supply at least one resource")
		}
	}
}

func validateRole(r *rbacv1.Role) field.ErrorList {
	var f faults
	f.policyRules(r.Rules, true)
	return f.list
}

func validateClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	var f faults
	f.policyRules(r.Rules, false)
	if a := r.AggregationRule; a != nil {
		at := field.NewPath("aggregationRule", "clusterRoleSelectors")
		if len(a.ClusterRoleSelectors) == 0 {
			f.required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil")
		}
		for i := range a.ClusterRoleSelectors {
			f.selector(at.Index(i), &a.ClusterRoleSelectors[i])
		}
	}
	return f.list
}

func (f *faults) binding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool, kinds ...string) {
	at := field.NewPath("roleRef")
	supports(f, at.Child("apiGroup"), ref.APIGroup, rbacv1.GroupName)
	supports(f, at.Child("kind"), ref.Kind, kinds...)
	f.present(at.Child("name"), ref.Name, pathSegment)
	for i, s := range subjects {
		f.subject(field.NewPath("subjects").Index(i), s, namespaced)
	}
}

func (f *faults) subject(at *field.Path, s rbacv1.Subject, namespaced bool) {
	f.present(at.Child("name"), s.Name, nil)
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		if s.Name != "" {
			f.invalids(at.Child("name"), s.Name, subdomainName(s.Name))
		}
		if s.APIGroup != "" {
			f.add(field.NotSupported(at.Child("apiGroup"), s.APIGroup, []string{""}))
		}
		if !namespaced && s.Namespace == "" {
			f.required(at.Child("namespace"), "")
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
		supports(f, at.Child("apiGroup"), s.APIGroup, rbacv1.GroupName)
	default:
		supports(f, at.Child("kind"), s.Kind, rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind)
	}
}

func validateRoleBinding(b *rbacv1.RoleBinding) field.ErrorList {
	var f faults
	f.binding(b.RoleRef, b.Subjects, true, "Role", "ClusterRole")
	return f.list
}

func validateClusterRoleBinding(b *rbacv1.ClusterRoleBinding) field.ErrorList {
	var f faults
	f.binding(b.RoleRef, b.Subjects, false, "ClusterRole")
	return f.list
}

func roleRefKept(now, old rbacv1.RoleRef) field.ErrorList {
	if now == old {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("roleRef"), now, "cannot change roleRef")}
}

func validateRoleBindingUpdate(b, old *rbacv1.RoleBinding) field.ErrorList {
	return roleRefKept(b.RoleRef, old.RoleRef)
}

func validateClusterRoleBindingUpdate(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
	return roleRefKept(b.RoleRef, old.RoleRef)
}

func validatePodDisruptionBudget(b *policyv1.PodDisruptionBudget) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &b.Spec
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		f.invalid(at, *s, "minAvailable and maxUnavailable cannot be both set")
	}
	if n := s.MinAvailable; n != nil {
		f.countOrPercent(at.Child("minAvailable"), *n)
		f.atMostAll(at.Child("minAvailable"), *n)
	}
	if n := s.MaxUnavailable; n != nil {
		f.countOrPercent(at.Child("maxUnavailable"), *n)
		f.atMostAll(at.Child("maxUnavailable"), *n)
	}
	f.selector(at.Child("selector"), s.Selector)
	if p := s.UnhealthyPodEvictionPolicy; p != nil {
		supports(&f, at.Child("unhealthyPodEvictionPolicy"), *p, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
	}
	return f.list
}

func validatePodDisruptionBudgetStatus(b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
	var f faults
	at, s := field.NewPath("status"), &b.Status
	f.join(metavalidation.ValidateConditions(s.Conditions, at.Child("conditions")))
	f.notNegative(at.Child("disruptionsAllowed"), int64(s.DisruptionsAllowed))
	f.notNegative(at.Child("currentHealthy"), int64(s.CurrentHealthy))
	f.notNegative(at.Child("desiredHealthy"), int64(s.DesiredHealthy))
	f.notNegative(at.Child("expectedPods"), int64(s.ExpectedPods))
	return f.list
}
