package auth

import (
	authorizationv1 "k8s.io/api/authorization/v1"
)

// ReviewRules lists what u may do in namespace, for SelfSubjectRulesReview. The
// list is incomplete for nodes, whose rights depend on their pods.
func (r *RBAC) ReviewRules(u *User, namespace string) authorizationv1.SubjectRulesReviewStatus {
	status := authorizationv1.SubjectRulesReviewStatus{
		ResourceRules:    []authorizationv1.ResourceRule{},
		NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	rules, err := r.RulesFor(u, namespace)
	if err != nil {
		status.EvaluationError = err.Error()
	}
	for _, rule := range rules {
		if len(rule.Resources) > 0 {
			status.ResourceRules = append(status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
			})
		}
		if len(rule.NonResourceURLs) > 0 {
			status.NonResourceRules = append(status.NonResourceRules, authorizationv1.NonResourceRule{
				Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs,
			})
		}
	}
	if _, isNode := u.NodeName(); isNode {
		status.Incomplete = true
		status.EvaluationError = "node authorizer does not support user rule resolution"
	}
	return status
}
