// Package replicaset keeps the number of pods that ReplicaSets and
// ReplicationControllers ask for.
package replicaset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Controller gives the ReplicaSet controller.
func Controller(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	return newController(kind[*appsv1.ReplicaSet]{
		gvk: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), name: "replicaset", workers: 8,
		spec: func(rs *appsv1.ReplicaSet) spec {
			return spec{*rs.Spec.Replicas, rs.Spec.MinReadySeconds, selectorOf(rs.Spec.Selector), &rs.Spec.Template}
		},
		setStatus: setStatus,
	}, r, index, events, now)
}

func setStatus(now *appsv1.ReplicaSet, generation int64, counts Counts, failure *failure, at metav1.Time) {
	s := &now.Status
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = counts.Replicas, counts.Labeled, counts.Ready, counts.Available
	s.TerminatingReplicas = &counts.Terminating
	s.ObservedGeneration = max(s.ObservedGeneration, generation)
	setFailure(s, failure, at)
}

func setFailure(s *appsv1.ReplicaSetStatus, failure *failure, at metav1.Time) {
	kept := s.Conditions[:0:0]
	for _, c := range s.Conditions {
		switch {
		case c.Type != appsv1.ReplicaSetReplicaFailure:
			kept = append(kept, c)
		case failure != nil && c.Reason == failure.reason:
			at = c.LastTransitionTime
		}
	}
	if failure != nil {
		kept = append(kept, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			Reason: failure.reason, Message: failure.message, LastTransitionTime: at})
	}
	s.Conditions = kept
}
