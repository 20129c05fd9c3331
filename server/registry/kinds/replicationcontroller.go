package kinds

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"orch/server/registry"
)

func replicationControllers() *registry.Resource {
	return entry[corev1.ReplicationController, corev1.ReplicationControllerList](corev1.SchemeGroupVersion, "replicationcontrollers", traits[*corev1.ReplicationController]{
		ShortNames: []string{"rc"}, Categories: []string{"all"},
		Spec: within(func(c *corev1.ReplicationController) *corev1.ReplicationControllerSpec { return &c.Spec }),
		Status: within(func(c *corev1.ReplicationController) *corev1.ReplicationControllerStatus {
			return &c.Status
		}),
		StatusValidate: validateReplicationControllerStatus,
		Default:        defaultReplicationController,
		Warnings: func(r *corev1.ReplicationController) []string {
			if r.Spec.Template == nil {
				return nil
			}
			return workloadWarnings(r.Name, r.Spec.Template, "spec", "template")
		},
		Validate:            validateReplicationController,
		UnconditionalUpdate: true,
		DefaultPropagation:  metav1.DeletePropagationOrphan,
		Fields: func(c *corev1.ReplicationController) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(c.Status.Replicas))}
		},
		Columns: append(columns(
			nameColumn(),
			column("Desired", "integer", doc(corev1.ReplicationControllerSpec{}, "replicas")),
			column("Current", "integer", doc(corev1.ReplicationControllerStatus{}, "replicas")),
			column("Ready", "integer", doc(corev1.ReplicationControllerStatus{}, "readyReplicas")),
			ageColumn(),
		), containerColumns(doc(corev1.ReplicationControllerSpec{}, "selector"))...),
		Row: func(c *corev1.ReplicationController, now time.Time) []any {
			var containers []corev1.Container
			if c.Spec.Template != nil {
				containers = c.Spec.Template.Spec.Containers
			}
			names, images := containerCells(containers)
			return []any{
				c.Name, int64(derefOr(c.Spec.Replicas, 0)), int64(c.Status.Replicas), int64(c.Status.ReadyReplicas),
				age(c, now), names, images, labels.FormatLabels(c.Spec.Selector),
			}
		},
		Subresources: []*registry.Subresource{scale(scaled[*corev1.ReplicationController]{
			replicas: func(c *corev1.ReplicationController) **int32 { return &c.Spec.Replicas },
			current:  func(c *corev1.ReplicationController) int32 { return c.Status.Replicas },
			selector: func(c *corev1.ReplicationController) string {
				return labels.Set(c.Spec.Selector).AsSelectorPreValidated().String()
			},
		})},
	})
}

func defaultReplicationController(c *corev1.ReplicationController) {
	setDefault(&c.Spec.Replicas, 1)
	if c.Spec.Template == nil {
		return
	}
	if l := c.Spec.Template.Labels; l != nil {
		if len(c.Spec.Selector) == 0 {
			c.Spec.Selector = l
		}
		if len(c.Labels) == 0 {
			c.Labels = l
		}
	}
	defaultPodTemplate(c.Spec.Template)
}
