package kinds

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

func statefulSets() *registry.Resource {
	return entry[appsv1.StatefulSet, appsv1.StatefulSetList](appsv1.SchemeGroupVersion, "statefulsets", traits[*appsv1.StatefulSet]{
		ShortNames: []string{"sts"}, Categories: []string{"all"},
		Spec:                within(func(s *appsv1.StatefulSet) *appsv1.StatefulSetSpec { return &s.Spec }),
		Status:              within(func(s *appsv1.StatefulSet) *appsv1.StatefulSetStatus { return &s.Status }),
		StatusValidate:      validateStatefulSetStatus,
		Default:             defaultStatefulSet,
		Warnings:            statefulSetWarnings,
		Validate:            validateStatefulSet,
		ValidateUpdate:      validateStatefulSetUpdate,
		UnconditionalUpdate: true,
		Columns: append(columns(
			nameColumn(), column("Ready", "string", "Number of the pod with ready state"), ageColumn(),
		), containerColumns("")...),
		Row: func(s *appsv1.StatefulSet, now time.Time) []any {
			names, images := containerCells(s.Spec.Template.Spec.Containers)
			return []any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, derefOr(s.Spec.Replicas, 0)), age(s, now), names, images}
		},
		Subresources: []*registry.Subresource{scale(scaled[*appsv1.StatefulSet]{
			replicas: func(s *appsv1.StatefulSet) **int32 { return &s.Spec.Replicas },
			current:  func(s *appsv1.StatefulSet) int32 { return s.Status.Replicas },
			selector: func(s *appsv1.StatefulSet) string { return selectorText(s.Spec.Selector) },
		})},
	})
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	spec := &s.Spec
	setZero(&spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	strategy := &spec.UpdateStrategy
	if strategy.Type == "" {
		strategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
		if strategy.RollingUpdate == nil {
			strategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
		}
	}
	if strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && strategy.RollingUpdate != nil {
		setDefault(&strategy.RollingUpdate.Partition, 0)
		setDefault(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	if spec.PersistentVolumeClaimRetentionPolicy == nil {
		spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{}
	}
	setZero(&spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	setZero(&spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	setDefault(&spec.Replicas, 1)
	setDefault(&spec.RevisionHistoryLimit, 10)
	defaultPodTemplate(&spec.Template)
	for i := range spec.VolumeClaimTemplates {
		c := &spec.VolumeClaimTemplates[i]
		c.APIVersion, c.Kind = "v1", "PersistentVolumeClaim"
		setZero(&c.Status.Phase, "Pending")
		defaultClaimSpec(&c.Spec)
	}
}

func statefulSetWarnings(s *appsv1.StatefulSet) []string {
	out := templateWarnings(&s.Spec.Template, "spec", "template")
	if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
		out = append(out, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
	}
	return out
}

func controllerRevisions() *registry.Resource {
	return entry[appsv1.ControllerRevision, appsv1.ControllerRevisionList](appsv1.SchemeGroupVersion, "controllerrevisions", traits[*appsv1.ControllerRevision]{
		Validate:            validateControllerRevision,
		ValidateUpdate:      validateControllerRevisionUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Controller", "string", "Controller of the object"),
			column("Revision", "string", doc(appsv1.ControllerRevision{}, "revision")),
			ageColumn(),
		),
		Row: func(c *appsv1.ControllerRevision, now time.Time) []any {
			return []any{c.Name, controllerCell(c), c.Revision, age(c, now)}
		},
	})
}

func controllerCell(obj metav1.Object) string {
	ref := metav1.GetControllerOf(obj)
	if ref == nil {
		return "<none>"
	}
	kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
	return strings.ToLower(kind.String()) + "/" + ref.Name
}
