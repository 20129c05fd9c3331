package roles

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
)

func TestAggregation(t *testing.T) {
	h := harness.New(t)
	h.Run(Aggregation(h.Registry))
	part := func(name, resource string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"to": "whole"}},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{resource}, Verbs: []string{"get"}}}}
	}
	harness.Create(h, part("b", "pods"))
	harness.Create(h, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "whole"}, AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "whole"}}}}})
	has := func(resources ...string) func(*rbacv1.ClusterRole) bool {
		return func(role *rbacv1.ClusterRole) bool {
			if len(role.Rules) != len(resources) {
				return false
			}
			for i, r := range resources {
				if role.Rules[i].Resources[0] != r {
					return false
				}
			}
			return true
		}
	}
	harness.Wait(h, "whole", "one part", has("pods"))
	harness.Create(h, part("a", "secrets"))
	harness.Wait(h, "whole", "both parts", has("secrets", "pods"))
}
