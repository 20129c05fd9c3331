package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"

	"orch/server/registry"
)

// evictionSeconds is how long a pod stays on a node that fails, unless it says
// otherwise. Kubernetes' default is 300; with this one, pods of a dead node run
// elsewhere within a minute: 25 s until the silence counts, these 30 s, and the
// start of the new pods.
const evictionSeconds = 30

// defaultTolerations lets pods sit out a short failure of their node.
type defaultTolerations struct{}

func (defaultTolerations) Admit(_ context.Context, a *registry.Attempt) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Subresource != "" || a.Operation != registry.OperationCreate && a.Operation != registry.OperationUpdate {
		return nil
	}
	for _, key := range [2]string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !toleratesEviction(pod.Spec.Tolerations, key) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute,
				TolerationSeconds: ptr.To[int64](evictionSeconds),
			})
		}
	}
	return nil
}

func toleratesEviction(tolerations []corev1.Toleration, key string) bool {
	for _, t := range tolerations {
		if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// maxMerged is how many tolerations are held against each other.
const maxMerged = 1000

// mergeTolerations leaves out those that another one includes.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	all := append(append([]corev1.Toleration{}, first...), second...)
	if len(all) > maxMerged {
		return all
	}
	var merged []corev1.Toleration
	for i := range all {
		if !isRedundant(all[i], merged, all[i+1:]) {
			merged = append(merged, all[i])
		}
	}
	return merged
}

// isRedundant prefers the first of two equal ones.
func isRedundant(t corev1.Toleration, before, after []corev1.Toleration) bool {
	for _, other := range before {
		if includes(other, t) {
			return true
		}
	}
	for _, other := range after {
		if !equality.Semantic.DeepEqual(t, other) && includes(other, t) {
			return true
		}
	}
	return false
}

// includes tells whether wide tolerates everything that t does, as long.
func includes(wide, t corev1.Toleration) bool {
	if equality.Semantic.DeepEqual(wide, t) {
		return true
	}
	if t.Key != wide.Key && (wide.Key != "" || wide.Operator != corev1.TolerationOpExists) {
		return false
	}
	if t.Effect != wide.Effect && wide.Effect != "" {
		return false
	}
	if wide.Effect == corev1.TaintEffectNoExecute && wide.TolerationSeconds != nil &&
		(t.TolerationSeconds == nil || *t.TolerationSeconds > *wide.TolerationSeconds) {
		return false
	}
	switch wide.Operator {
	case corev1.TolerationOpEqual, "":
		return t.Operator == corev1.TolerationOpEqual && t.Value == wide.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}
