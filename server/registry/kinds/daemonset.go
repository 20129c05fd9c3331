package kinds

import (
	"context"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

func daemonSets() *registry.Resource {
	return entry[appsv1.DaemonSet, appsv1.DaemonSetList](appsv1.SchemeGroupVersion, "daemonsets", traits[*appsv1.DaemonSet]{
		ShortNames: []string{"ds"}, Categories: []string{"all"},
		Spec:           within(func(s *appsv1.DaemonSet) *appsv1.DaemonSetSpec { return &s.Spec }),
		Status:         within(func(s *appsv1.DaemonSet) *appsv1.DaemonSetStatus { return &s.Status }),
		StatusValidate: validateDaemonSetStatus,
		Default:        defaultDaemonSet,
		PrepareCreate: func(_ context.Context, _ *registry.Registry, s *appsv1.DaemonSet) error {
			countTemplate(s, nil)
			return nil
		},
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, s, old *appsv1.DaemonSet) error {
			countTemplate(s, old)
			return nil
		},
		Warnings:            func(d *appsv1.DaemonSet) []string { return templateWarnings(&d.Spec.Template, "spec", "template") },
		Validate:            validateDaemonSet,
		ValidateUpdate:      validateDaemonSetUpdate,
		UnconditionalUpdate: true,
		Columns: append(columns(
			nameColumn(),
			column("Desired", "integer", doc(appsv1.DaemonSetStatus{}, "desiredNumberScheduled")),
			column("Current", "integer", doc(appsv1.DaemonSetStatus{}, "currentNumberScheduled")),
			column("Ready", "integer", doc(appsv1.DaemonSetStatus{}, "numberReady")),
			column("Up-to-date", "integer", doc(appsv1.DaemonSetStatus{}, "updatedNumberScheduled")),
			column("Available", "integer", doc(appsv1.DaemonSetStatus{}, "numberAvailable")),
			column("Node Selector", "string", doc(corev1.PodSpec{}, "nodeSelector")),
			ageColumn(),
		), containerColumns(doc(appsv1.DaemonSetSpec{}, "selector"))...),
		Row: func(s *appsv1.DaemonSet, now time.Time) []any {
			names, images := containerCells(s.Spec.Template.Spec.Containers)
			return []any{
				s.Name, int64(s.Status.DesiredNumberScheduled), int64(s.Status.CurrentNumberScheduled),
				int64(s.Status.NumberReady), int64(s.Status.UpdatedNumberScheduled), int64(s.Status.NumberAvailable),
				labels.FormatLabels(s.Spec.Template.Spec.NodeSelector), age(s, now),
				names, images, metav1.FormatLabelSelector(s.Spec.Selector),
			}
		},
	})
}

// countTemplate numbers the templates of a set in the annotation that replaced
// a field of the same meaning.
func countTemplate(s, old *appsv1.DaemonSet) {
	generation := int64(1)
	if old != nil {
		generation, _ = strconv.ParseInt(old.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
		if !sameValue(s.Spec.Template, old.Spec.Template) {
			generation++
		}
	}
	s.Annotations = overlay(s.Annotations, map[string]string{appsv1.DeprecatedTemplateGeneration: strconv.FormatInt(generation, 10)})
}

func defaultDaemonSet(s *appsv1.DaemonSet) {
	strategy := &s.Spec.UpdateStrategy
	setZero(&strategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if strategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		if strategy.RollingUpdate == nil {
			strategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
		}
		setDefault(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		setDefault(&strategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	setDefault(&s.Spec.RevisionHistoryLimit, 10)
	defaultPodTemplate(&s.Spec.Template)
}
