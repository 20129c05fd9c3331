package kinds

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// componentStatuses tells of the parts that upstream runs as processes of their
// own. Here they are one with the server: whoever reaches a majority of the
// store has a leader, on which the others run.
func componentStatuses(cfg Config) *registry.Resource {
	return entry[corev1.ComponentStatus, corev1.ComponentStatusList](corev1.SchemeGroupVersion, "componentstatuses", traits[*corev1.ComponentStatus]{
		ShortNames: []string{"cs"}, Cluster: true, Verbs: []string{"get", "list"},
		Deprecated: "v1 ComponentStatus is deprecated in v1.19+",
		Report: func(ctx context.Context, r *registry.Registry) []registry.Object {
			err := r.Current(ctx)
			return []registry.Object{
				componentStatus(cfg, "scheduler", "scheduler", err),
				componentStatus(cfg, "controller-manager", "controllers", err),
				componentStatus(cfg, "etcd-0", "", err),
			}
		},
		Columns: columns(nameColumn(), column("Status", "string", "Status of the component conditions"),
			column("Message", "string", "Message of the component conditions"), column("Error", "string", "Error of the component conditions")),
		Row: func(c *corev1.ComponentStatus, _ time.Time) []any {
			if len(c.Conditions) == 0 {
				return []any{c.Name, "Unknown", "", ""}
			}
			condition, status := c.Conditions[0], "Unhealthy"
			if condition.Status == corev1.ConditionTrue {
				status = "Healthy"
			}
			return []any{c.Name, status, condition.Message, condition.Error}
		},
	})
}

// componentStatus tells of one component, which --disable knows as part.
func componentStatus(cfg Config, name, part string, err error) *corev1.ComponentStatus {
	c := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
	switch {
	case err != nil:
		c.Status, c.Message = corev1.ConditionFalse, err.Error()
	case part != "" && cfg.Disabled != nil && cfg.Disabled(part):
		c.Status, c.Message = corev1.ConditionUnknown, "left to another program by --disable "+part
	}
	return &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: name}, Conditions: []corev1.ComponentCondition{c}}
}
