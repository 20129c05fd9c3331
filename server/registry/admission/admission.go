// Package admission holds the built-in admission plugins of Kubernetes, with
// its messages: what a write must satisfy, and what is filled in, beyond the
// object's own defaults and validation.
package admission

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/policy"

	"orch/server/auth"
	"orch/server/registry"
)

// Config is what some plugins need besides the registry.
type Config struct {
	Authorizer auth.Authorizer // for approving and signing certificates
	Escalation auth.Escalation // for roles and bindings
	Claims     auth.Claims     // for nodes
	Now        func() time.Time
}

// Chain gives the plugins that are on by default, in Kubernetes' order. Quota
// comes last, so that nothing is charged for what another plugin refuses.
func Chain(cfg Config) ([]registry.Admission, error) {
	podSecurity, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, err
	}
	return []registry.Admission{
		namespaceLifecycle{},
		credentialRecords{},
		limitRanger{},
		serviceAccount{},
		nodeRestriction{cfg.Claims, cfg.Authorizer},
		nodeTaint{},
		podSecurityStandards{evaluator: podSecurity},
		podPriority{},
		defaultTolerations{},
		defaultStorageClass{},
		claimResize{},
		runtimeClass{},
		certificateApproval{cfg.Authorizer},
		certificateSubject{},
		defaultIngressClass{},
		topologyLabels{},
		rbacEscalation{cfg.Escalation},
		resourceQuota{now: cfg.Now},
	}, nil
}

// isOf tells whether the attempt is on this resource and subresource ("": the
// object itself).
func isOf(a *registry.Attempt, group, plural, subresource string) bool {
	return a.Resource.Plural == plural && a.Resource.Group == group && a.Subresource == subresource
}

// newPod is the pod that a creates, nil when it does something else.
func newPod(a *registry.Attempt) *corev1.Pod {
	if a.Operation != registry.OperationCreate || !isOf(a, "", "pods", "") {
		return nil
	}
	pod, _ := a.Object.(*corev1.Pod)
	return pod
}

// isMirror tells whether pod is a node's copy of a static pod, which nothing
// here may change.
func isMirror(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return mirror
}

// user is who makes the attempt.
func user(ctx context.Context) *auth.User { return auth.UserFrom(ctx) }
