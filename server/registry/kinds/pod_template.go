package kinds

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"orch/server/registry"
)

func podTemplates() *registry.Resource {
	return entry[corev1.PodTemplate, corev1.PodTemplateList](corev1.SchemeGroupVersion, "podtemplates", traits[*corev1.PodTemplate]{
		Spec:                within(func(t *corev1.PodTemplate) *corev1.PodTemplateSpec { return &t.Template }),
		Default:             func(t *corev1.PodTemplate) { defaultPodTemplate(&t.Template) },
		Warnings:            func(t *corev1.PodTemplate) []string { return templateWarnings(&t.Template, "template") },
		Validate:            validatePodTemplateObject,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Containers", "string", "Names of each container in the template."),
			column("Images", "string", "Images referenced by each container in the template."),
			column("Pod Labels", "string", "The labels for the pod template."),
		),
		Row: func(t *corev1.PodTemplate, _ time.Time) []any {
			names, images := containerCells(t.Template.Spec.Containers)
			return []any{t.Name, names, images, labels.FormatLabels(t.Template.Labels)}
		},
	})
}
