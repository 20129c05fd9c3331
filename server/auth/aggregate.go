package auth

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// AggregatedRules are the rules that role should have: those of all roles its
// aggregation rule selects, in the order of their names, each once. ok is
// false when role is not an aggregated one.
func AggregatedRules(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) (rules []rbacv1.PolicyRule, ok bool) {
	if role.AggregationRule == nil {
		return nil, false
	}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *rbacv1.ClusterRole) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	for i := range role.AggregationRule.ClusterRoleSelectors {
		selector, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			continue // validation refuses these; an old one selects nothing
		}
		for _, other := range all {
			if other.Name != role.Name && selector.Matches(labels.Set(other.Labels)) {
				rules = appendNewRules(rules, other.Rules)
			}
		}
	}
	return rules, true
}

func appendNewRules(rules, more []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	for i := range more {
		same := func(r rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(r, more[i]) }
		if !slices.ContainsFunc(rules, same) {
			rules = append(rules, more[i])
		}
	}
	return rules
}
