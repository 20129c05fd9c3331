package kinds

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func replicaSets() *registry.Resource {
	return entry[appsv1.ReplicaSet, appsv1.ReplicaSetList](appsv1.SchemeGroupVersion, "replicasets", traits[*appsv1.ReplicaSet]{
		ShortNames: []string{"rs"}, Categories: []string{"all"},
		Spec:           within(func(s *appsv1.ReplicaSet) *appsv1.ReplicaSetSpec { return &s.Spec }),
		Status:         within(func(s *appsv1.ReplicaSet) *appsv1.ReplicaSetStatus { return &s.Status }),
		StatusValidate: validateReplicaSetStatus,
		Default: func(s *appsv1.ReplicaSet) {
			setDefault(&s.Spec.Replicas, 1)
			defaultPodTemplate(&s.Spec.Template)
		},
		Warnings: func(r *appsv1.ReplicaSet) []string {
			return workloadWarnings(r.Name, &r.Spec.Template, "spec", "template")
		},
		Validate:            validateReplicaSet,
		ValidateUpdate:      validateReplicaSetUpdate,
		UnconditionalUpdate: true,
		Columns: append(columns(
			nameColumn(),
			column("Desired", "integer", doc(appsv1.ReplicaSetSpec{}, "replicas")),
			column("Current", "integer", doc(appsv1.ReplicaSetStatus{}, "replicas")),
			column("Ready", "integer", doc(appsv1.ReplicaSetStatus{}, "readyReplicas")),
			ageColumn(),
		), containerColumns(doc(appsv1.ReplicaSetSpec{}, "selector"))...),
		Row: func(s *appsv1.ReplicaSet, now time.Time) []any {
			names, images := containerCells(s.Spec.Template.Spec.Containers)
			return []any{
				s.Name, int64(derefOr(s.Spec.Replicas, 0)), int64(s.Status.Replicas), int64(s.Status.ReadyReplicas),
				age(s, now), names, images, metav1.FormatLabelSelector(s.Spec.Selector),
			}
		},
		Subresources: []*registry.Subresource{scale(scaled[*appsv1.ReplicaSet]{
			replicas: func(s *appsv1.ReplicaSet) **int32 { return &s.Spec.Replicas },
			current:  func(s *appsv1.ReplicaSet) int32 { return s.Status.Replicas },
			selector: func(s *appsv1.ReplicaSet) string { return selectorText(s.Spec.Selector) },
		})},
	})
}
