package join

import (
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"golang.org/x/sync/errgroup"

	"orch/server/auth"
	"orch/server/registry"
)

// EnsurePolicy creates the bootstrap roles and bindings that are missing, all
// at once so that they share a few log writes, and gives roles of an older
// orch the rules that have come since.
func EnsurePolicy(ctx context.Context, r *registry.Registry) error {
	policy := auth.BootstrapPolicy()
	all, ctx := errgroup.WithContext(ctx)
	roles, clusterRoles := registry.Of[*rbacv1.Role](r), registry.Of[*rbacv1.ClusterRole](r)
	for _, role := range policy.ClusterRoles {
		all.Go(func() error {
			return ensureRole(ctx, clusterRoles, role, func(r *rbacv1.ClusterRole) *[]rbacv1.PolicyRule { return &r.Rules })
		})
	}
	for _, role := range policy.Roles {
		all.Go(func() error {
			return ensureRole(ctx, roles, role, func(r *rbacv1.Role) *[]rbacv1.PolicyRule { return &r.Rules })
		})
	}
	clusterBindings, bindings := registry.Of[*rbacv1.ClusterRoleBinding](r), registry.Of[*rbacv1.RoleBinding](r)
	for _, b := range policy.ClusterRoleBindings {
		all.Go(func() error { return ensure(ctx, clusterBindings, b) })
	}
	for _, b := range policy.RoleBindings {
		all.Go(func() error { return ensure(ctx, bindings, b) })
	}
	if err := all.Wait(); err != nil {
		return fmt.Errorf("bootstrap policy: %w", err)
	}
	return nil
}

// ensureRole creates role or, unless an administrator took charge of it, adds
// the rules that it lacks.
func ensureRole[T registry.Object](ctx context.Context, typed registry.Typed[T], role T, rules func(T) *[]rbacv1.PolicyRule) error {
	current, err := typed.Get(role.GetNamespace(), role.GetName())
	if apierrors.IsNotFound(err) {
		return ensure(ctx, typed, role)
	}
	if err != nil {
		return err
	}
	if current.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey] != "true" {
		return nil
	}
	covered, missing := validation.Covers(*rules(current), *rules(role))
	if covered {
		return nil
	}
	_, err = typed.Mutate(ctx, role.GetNamespace(), role.GetName(), func(r T) error {
		*rules(r) = append(*rules(r), missing...)
		return nil
	})
	return err
}

// ensure creates an object that is not there; one that is stays as it is.
func ensure[T registry.Object](ctx context.Context, typed registry.Typed[T], obj T) error {
	if _, err := typed.Get(obj.GetNamespace(), obj.GetName()); !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := typed.Create(ctx, obj); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %T %s: %w", obj, obj.GetName(), err)
	}
	return nil
}
