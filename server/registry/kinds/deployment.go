package kinds

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

func deployments() *registry.Resource {
	return entry[appsv1.Deployment, appsv1.DeploymentList](appsv1.SchemeGroupVersion, "deployments", traits[*appsv1.Deployment]{
		ShortNames: []string{"deploy"}, Categories: []string{"all"},
		Spec:           within(func(d *appsv1.Deployment) *appsv1.DeploymentSpec { return &d.Spec }),
		Status:         within(func(d *appsv1.Deployment) *appsv1.DeploymentStatus { return &d.Status }),
		StatusPrepare:  func(d, old *appsv1.Deployment) { d.Labels = old.Labels },
		StatusValidate: validateDeploymentStatus,
		Default:        defaultDeployment,
		Warnings: func(d *appsv1.Deployment) []string {
			return workloadWarnings(d.Name, &d.Spec.Template, "spec", "template")
		},
		Validate:            validateDeployment,
		ValidateUpdate:      validateDeploymentUpdate,
		UnconditionalUpdate: true,
		Columns: append(columns(
			nameColumn(),
			column("Ready", "string", "Number of the pod with ready state"),
			column("Up-to-date", "string", doc(appsv1.DeploymentStatus{}, "updatedReplicas")),
			column("Available", "string", doc(appsv1.DeploymentStatus{}, "availableReplicas")),
			ageColumn(),
		), containerColumns(doc(appsv1.DeploymentSpec{}, "selector"))...),
		Row: deploymentRow,
		Subresources: []*registry.Subresource{scale(scaled[*appsv1.Deployment]{
			replicas: func(d *appsv1.Deployment) **int32 { return &d.Spec.Replicas },
			current:  func(d *appsv1.Deployment) int32 { return d.Status.Replicas },
			selector: func(d *appsv1.Deployment) string { return selectorText(d.Spec.Selector) },
		})},
	})
}

func selectorText(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return selector.String()
}

func defaultDeployment(d *appsv1.Deployment) {
	setDefault(&d.Spec.Replicas, 1)
	strategy := &d.Spec.Strategy
	setZero(&strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if strategy.RollingUpdate == nil {
			strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		setDefault(&strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		setDefault(&strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	setDefault(&d.Spec.RevisionHistoryLimit, 10)
	setDefault(&d.Spec.ProgressDeadlineSeconds, 600)
	defaultPodTemplate(&d.Spec.Template)
}

func deploymentRow(d *appsv1.Deployment, now time.Time) []any {
	names, images := containerCells(d.Spec.Template.Spec.Containers)
	selector := "<invalid>"
	if s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil {
		selector = s.String()
	}
	return []any{
		d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, derefOr(d.Spec.Replicas, 0)),
		int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), age(d, now), names, images, selector,
	}
}
