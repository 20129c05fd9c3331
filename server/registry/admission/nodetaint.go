package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

// nodeTaint keeps pods off a new node until the node lifecycle controller has
// seen it ready (TaintNodesByCondition).
type nodeTaint struct{}

func (nodeTaint) Admit(_ context.Context, a *registry.Attempt) error {
	node, ok := a.Object.(*corev1.Node)
	if !ok || a.Operation != registry.OperationCreate || a.Subresource != "" {
		return nil
	}
	taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	if !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&taint) }) {
		node.Spec.Taints = append(node.Spec.Taints, taint)
	}
	return nil
}
