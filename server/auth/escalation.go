package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// Escalation keeps users from granting rights that they do not hold, unless
// they may "escalate" the role or "bind" it.
type Escalation struct {
	RBAC       *RBAC
	Authorizer Authorizer
}

// MayGrant decides whether u may write rules into a role (resource "roles" or
// "clusterroles").
func (e Escalation) MayGrant(ctx context.Context, u *User, resource, namespace, name string, rules []rbacv1.PolicyRule) error {
	if u.InGroup(GroupMasters) || e.allowed(ctx, u, "escalate", resource, namespace, name) {
		return nil
	}
	return e.covers(u, namespace, rules)
}

// MayBind decides whether u may write a binding in namespace ("": cluster-wide)
// to the role that ref names.
func (e Escalation) MayBind(ctx context.Context, u *User, ref rbacv1.RoleRef, namespace string) error {
	resource := "roles"
	if ref.Kind == "ClusterRole" {
		resource = "clusterroles"
	}
	if u.InGroup(GroupMasters) || e.allowed(ctx, u, "bind", resource, namespace, ref.Name) {
		return nil
	}
	rules, err := e.RBAC.RulesOf(ref, namespace)
	if err != nil {
		return err
	}
	return e.covers(u, namespace, rules)
}

func (e Escalation) allowed(ctx context.Context, u *User, verb, resource, namespace, name string) bool {
	allowed, _, err := e.Authorizer.Authorize(ctx, &Attributes{
		User: u, Verb: verb, Group: rbacGroup, Version: "*", Resource: resource,
		Namespace: namespace, Name: name, ResourceRequest: true,
	})
	return allowed && err == nil
}

func (e Escalation) covers(u *User, namespace string, rules []rbacv1.PolicyRule) error {
	held, lookup := e.RBAC.RulesFor(u, namespace)
	covered, missing := validation.Covers(held, rules)
	if covered {
		return nil
	}
	var lines []string
	for _, rule := range mergeVerbs(missing) {
		lines = append(lines, describeRule(rule))
	}
	slices.Sort(lines)
	text := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		u.Name, u.Groups, strings.Join(slices.Compact(lines), "\n"))
	if lookup != nil {
		text += fmt.Sprintf("; resolution errors: [%v]", lookup)
	}
	return fmt.Errorf("%s", text)
}

// mergeVerbs joins rules, broken down to one verb each by Covers, that differ
// in nothing but the verb.
func mergeVerbs(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	index := make(map[string]int)
	var merged []rbacv1.PolicyRule
	for _, rule := range rules {
		simple := len(rule.APIGroups) == 1 && len(rule.Resources) == 1 && len(rule.ResourceNames) <= 1 && len(rule.NonResourceURLs) == 0
		key := fmt.Sprintf("%q %q %q", rule.APIGroups, rule.Resources, rule.ResourceNames)
		at, known := index[key]
		if simple && known {
			merged[at].Verbs = append(merged[at].Verbs, rule.Verbs...)
			continue
		}
		if simple {
			index[key] = len(merged)
			rule.Verbs = slices.Clone(rule.Verbs)
		}
		merged = append(merged, rule)
	}
	return merged
}

func describeRule(rule rbacv1.PolicyRule) string {
	var parts []string
	for _, p := range []struct {
		name string
		list []string
	}{
		{"APIGroups", rule.APIGroups},
		{"Resources", rule.Resources},
		{"NonResourceURLs", rule.NonResourceURLs},
		{"ResourceNames", rule.ResourceNames},
		{"Verbs", rule.Verbs},
	} {
		if len(p.list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.list))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
