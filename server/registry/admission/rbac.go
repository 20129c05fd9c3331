package admission

import (
	"context"
	"errors"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/server/auth"
	"orch/server/registry"
)

// rbacEscalation keeps users from granting rights that they do not have.
type rbacEscalation struct{ check auth.Escalation }

func (e rbacEscalation) Admit(ctx context.Context, a *registry.Attempt) error {
	if a.Resource.Group != rbacv1.GroupName || a.Operation != registry.OperationCreate && a.Operation != registry.OperationUpdate {
		return nil
	}
	if onlyForCollector(a.Object, a.Old) {
		return nil
	}
	switch obj := a.Object.(type) {
	case *rbacv1.ClusterRole:
		return e.clusterRole(ctx, a, obj)
	case *rbacv1.Role:
		return e.check.MayGrant(ctx, user(ctx), "roles", a.Namespace, obj.Name, obj.Rules)
	case *rbacv1.ClusterRoleBinding:
		return e.check.MayBind(ctx, user(ctx), obj.RoleRef, metav1.NamespaceNone)
	case *rbacv1.RoleBinding:
		return e.check.MayBind(ctx, user(ctx), obj.RoleRef, a.Namespace)
	}
	return nil
}

// onlyForCollector tells whether an update changes nothing but what garbage
// collection needs. Whatever else it changes counts: a label makes a role part
// of others that gather by it.
func onlyForCollector(obj runtime.Object, old registry.Object) bool {
	if old == nil {
		return false
	}
	same, ok := obj.DeepCopyObject().(registry.Object)
	if !ok {
		return false
	}
	same.SetOwnerReferences(old.GetOwnerReferences())
	same.SetFinalizers(old.GetFinalizers())
	same.SetManagedFields(old.GetManagedFields())
	same.SetResourceVersion(old.GetResourceVersion())
	return equality.Semantic.DeepEqual(same, old)
}

// clusterRole: an aggregation rule can gather anything, so only those who have
// everything may write one.
func (e rbacEscalation) clusterRole(ctx context.Context, a *registry.Attempt, role *rbacv1.ClusterRole) error {
	old, _ := a.Old.(*rbacv1.ClusterRole)
	if err := e.check.MayGrant(ctx, user(ctx), "clusterroles", "", role.Name, role.Rules); err != nil {
		return err
	}
	if !aggregates(role) && (old == nil || !aggregates(old)) {
		return nil
	}
	everything := []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
		{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
	}
	if err := e.check.MayGrant(ctx, user(ctx), "clusterroles", "", role.Name, everything); err != nil {
		return errors.New("must have cluster-admin privileges to use the aggregationRule")
	}
	return nil
}

func aggregates(role *rbacv1.ClusterRole) bool {
	return role.AggregationRule != nil && len(role.AggregationRule.ClusterRoleSelectors) > 0
}
