package replicaset

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// ReplicationControllers gives the controller of the older kind.
func ReplicationControllers(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	return newController(kind[*corev1.ReplicationController]{
		gvk: corev1.SchemeGroupVersion.WithKind("ReplicationController"), name: "replicationcontroller", workers: 4,
		spec: func(rc *corev1.ReplicationController) spec {
			return spec{*rc.Spec.Replicas, rc.Spec.MinReadySeconds, labels.SelectorFromSet(rc.Spec.Selector), rc.Spec.Template}
		},
		setStatus: setRCStatus,
	}, r, index, events, now)
}

func setRCStatus(now *corev1.ReplicationController, generation int64, counts Counts, failure *failure, at metav1.Time) {
	s := &now.Status
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = counts.Replicas, counts.Labeled, counts.Ready, counts.Available
	s.ObservedGeneration = max(s.ObservedGeneration, generation)
	kept := s.Conditions[:0:0]
	for _, c := range s.Conditions {
		if c.Type != corev1.ReplicationControllerReplicaFailure {
			kept = append(kept, c)
		} else {
			at = c.LastTransitionTime
		}
	}
	if failure != nil {
		kept = append(kept, corev1.ReplicationControllerCondition{Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue,
			Reason: failure.reason, Message: failure.message, LastTransitionTime: at})
	}
	s.Conditions = kept
}
