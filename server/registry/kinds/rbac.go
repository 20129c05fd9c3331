package kinds

import (
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// Names of RBAC objects are free but for what a path cannot hold.
func pathSegmentName(name string, prefix bool) []string {
	if prefix {
		return pathvalidation.IsValidPathSegmentPrefix(name)
	}
	return pathvalidation.IsValidPathSegmentName(name)
}

func roles() *registry.Resource {
	return entry[rbacv1.Role, rbacv1.RoleList](rbacv1.SchemeGroupVersion, "roles", traits[*rbacv1.Role]{
		Validate:     validateRole,
		ValidateName: pathSegmentName, CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: plainColumns(), Row: plainRow[*rbacv1.Role],
	})
}

func clusterRoles() *registry.Resource {
	return entry[rbacv1.ClusterRole, rbacv1.ClusterRoleList](rbacv1.SchemeGroupVersion, "clusterroles", traits[*rbacv1.ClusterRole]{
		Cluster:      true,
		Validate:     validateClusterRole,
		ValidateName: pathSegmentName, CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: plainColumns(), Row: plainRow[*rbacv1.ClusterRole],
	})
}

func roleBindings() *registry.Resource {
	return entry[rbacv1.RoleBinding, rbacv1.RoleBindingList](rbacv1.SchemeGroupVersion, "rolebindings", traits[*rbacv1.RoleBinding]{
		Default: func(b *rbacv1.RoleBinding) {
			setZero(&b.RoleRef.APIGroup, rbacv1.GroupName)
			defaultSubjects(b.Subjects)
		},
		Validate:       validateRoleBinding,
		ValidateUpdate: validateRoleBindingUpdate,
		ValidateName:   pathSegmentName, CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: bindingColumns("roleBinding", doc(rbacv1.RoleBinding{}, "roleRef")),
		Row: func(b *rbacv1.RoleBinding, now time.Time) []any {
			return bindingRow(b.Name, b.RoleRef, b.Subjects, age(b, now))
		},
	})
}

func clusterRoleBindings() *registry.Resource {
	return entry[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](rbacv1.SchemeGroupVersion, "clusterrolebindings", traits[*rbacv1.ClusterRoleBinding]{
		Cluster: true,
		Default: func(b *rbacv1.ClusterRoleBinding) {
			setZero(&b.RoleRef.APIGroup, rbacv1.GroupName)
			defaultSubjects(b.Subjects)
		},
		Validate:       validateClusterRoleBinding,
		ValidateUpdate: validateClusterRoleBindingUpdate,
		ValidateName:   pathSegmentName, CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: bindingColumns("clusterRoleBinding", doc(rbacv1.ClusterRoleBinding{}, "roleRef")),
		Row: func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
			return bindingRow(b.Name, b.RoleRef, b.Subjects, age(b, now))
		},
	})
}

func defaultSubjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		if s := &subjects[i]; s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind {
			setZero(&s.APIGroup, rbacv1.GroupName)
		}
	}
}

func bindingColumns(kind, roleRef string) []metav1.TableColumnDefinition {
	return columns(
		nameColumn(),
		column("Role", "string", roleRef),
		ageColumn(),
		wide("Users", "string", "Users in the "+kind),
		wide("Groups", "string", "Groups in the "+kind),
		wide("ServiceAccounts", "string", "ServiceAccounts in the "+kind),
	)
}

func bindingRow(name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject, age string) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{
		name, ref.Kind + "/" + ref.Name, age,
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", "),
	}
}
