package auth

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// ruleAllows tells whether one rule permits what a asks for.
func ruleAllows(rule *rbacv1.PolicyRule, a *Attributes) bool {
	if !anyOr(rule.Verbs, a.Verb) {
		return false
	}
	if !a.ResourceRequest {
		return matchesURL(rule.NonResourceURLs, a.Path)
	}
	return anyOr(rule.APIGroups, a.Group) &&
		matchesResource(rule.Resources, a.Resource, a.Subresource) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.Name))
}

// anyOr is true when list holds "*" or want.
func anyOr(list []string, want string) bool {
	for _, item := range list {
		if item == rbacv1.VerbAll || item == want {
			return true
		}
	}
	return false
}

// matchesResource knows "*", "pods", "pods/log" and "*/scale".
func matchesResource(list []string, resource, subresource string) bool {
	for _, item := range list {
		if item == rbacv1.ResourceAll {
			return true
		}
		name, sub, _ := strings.Cut(item, "/")
		if sub == subresource && (name == resource || name == "*" && sub != "") {
			return true
		}
	}
	return false
}

// matchesURL knows exact paths, "*" and prefixes that end in "*".
func matchesURL(list []string, path string) bool {
	for _, item := range list {
		if item == rbacv1.NonResourceAll || item == path {
			return true
		}
		if prefix, ok := strings.CutSuffix(item, "*"); ok && strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}
