package kinds

import (
	"fmt"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"orch/server/registry"
)

func horizontalPodAutoscalers() *registry.Resource {
	return entry[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", traits[*autoscalingv2.HorizontalPodAutoscaler]{
		ShortNames: []string{"hpa"}, Categories: []string{"all"}, Unnumbered: true,
		Spec: within(func(h *autoscalingv2.HorizontalPodAutoscaler) *autoscalingv2.HorizontalPodAutoscalerSpec {
			return &h.Spec
		}),
		Status: within(func(h *autoscalingv2.HorizontalPodAutoscaler) *autoscalingv2.HorizontalPodAutoscalerStatus {
			return &h.Status
		}),
		Default:             defaultHPA,
		Validate:            validateHPA,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Reference", "string", doc(autoscalingv2.HorizontalPodAutoscalerSpec{}, "scaleTargetRef")),
			column("Targets", "string", doc(autoscalingv2.HorizontalPodAutoscalerSpec{}, "metrics")),
			column("MinPods", "string", doc(autoscalingv2.HorizontalPodAutoscalerSpec{}, "minReplicas")),
			column("MaxPods", "string", doc(autoscalingv2.HorizontalPodAutoscalerSpec{}, "maxReplicas")),
			column("Replicas", "string", doc(autoscalingv2.HorizontalPodAutoscalerStatus{}, "currentReplicas")),
			ageColumn(),
		),
		Row: hpaRow,
	})
}

func defaultHPA(h *autoscalingv2.HorizontalPodAutoscaler) {
	setDefault(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		utilization := int32(80)
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{
				Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &utilization,
			}},
		}}
	}
	if b := h.Spec.Behavior; b != nil {
		percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
		fourPods := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}
		defaultScalingRules(&b.ScaleUp, fourPods, percent)
		setDefault(&b.ScaleUp.StabilizationWindowSeconds, 0)
		defaultScalingRules(&b.ScaleDown, percent)
	}
}

func defaultScalingRules(r **autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
	if *r == nil {
		*r = &autoscalingv2.HPAScalingRules{}
	}
	setDefault(&(*r).SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if (*r).Policies == nil {
		(*r).Policies = policies
	}
}

func hpaRow(h *autoscalingv2.HorizontalPodAutoscaler, now time.Time) []any {
	least := "<unset>"
	if h.Spec.MinReplicas != nil {
		least = fmt.Sprint(*h.Spec.MinReplicas)
	}
	return []any{
		h.Name, h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name, metricsCell(h), least,
		int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), age(h, now),
	}
}

func metricsCell(h *autoscalingv2.HorizontalPodAutoscaler) string {
	const limit = 2
	if len(h.Spec.Metrics) == 0 {
		return "<none>"
	}
	var cells []string
	for i, m := range h.Spec.Metrics {
		var now autoscalingv2.MetricStatus
		if i < len(h.Status.CurrentMetrics) {
			now = h.Status.CurrentMetrics[i]
		}
		cells = append(cells, metricCell(m, now))
	}
	if len(cells) > limit {
		return fmt.Sprintf("%s + %d more...", strings.Join(cells[:limit], ", "), len(cells)-limit)
	}
	return strings.Join(cells, ", ")
}

func metricCell(m autoscalingv2.MetricSpec, now autoscalingv2.MetricStatus) string {
	switch {
	case m.External != nil:
		var current *autoscalingv2.MetricValueStatus
		if now.External != nil {
			current = &now.External.Current
		}
		return valueCell(m.External.Target, current)
	case m.Object != nil:
		var current *autoscalingv2.MetricValueStatus
		if now.Object != nil {
			current = &now.Object.Current
		}
		return valueCell(m.Object.Target, current)
	case m.Pods != nil:
		current := "<unknown>"
		if now.Pods != nil {
			current = quantityCell(now.Pods.Current.AverageValue)
		}
		return current + "/" + quantityCell(m.Pods.Target.AverageValue)
	case m.Resource != nil:
		var current *autoscalingv2.MetricValueStatus
		if now.Resource != nil {
			current = &now.Resource.Current
		}
		return resourceCell(m.Resource.Name, m.Resource.Target, current)
	case m.ContainerResource != nil:
		var current *autoscalingv2.MetricValueStatus
		if now.ContainerResource != nil {
			current = &now.ContainerResource.Current
		}
		return resourceCell(m.ContainerResource.Name, m.ContainerResource.Target, current)
	}
	return "<unknown type>"
}

func valueCell(target autoscalingv2.MetricTarget, current *autoscalingv2.MetricValueStatus) string {
	cell := "<unknown>"
	if target.AverageValue != nil {
		if current != nil && current.AverageValue != nil {
			cell = current.AverageValue.String()
		}
		return cell + "/" + target.AverageValue.String() + " (avg)"
	}
	if current != nil {
		cell = quantityCell(current.Value)
	}
	return cell + "/" + quantityCell(target.Value)
}

func resourceCell(name corev1.ResourceName, target autoscalingv2.MetricTarget, current *autoscalingv2.MetricValueStatus) string {
	now := "<unknown>"
	if target.AverageValue != nil {
		if current != nil {
			now = quantityCell(current.AverageValue)
		}
		return fmt.Sprintf("%s: %s/%s", name, now, target.AverageValue.String())
	}
	if current != nil && current.AverageUtilization != nil {
		now = fmt.Sprintf("%d%%", *current.AverageUtilization)
	}
	want := "<auto>"
	if target.AverageUtilization != nil {
		want = fmt.Sprintf("%d%%", *target.AverageUtilization)
	}
	return fmt.Sprintf("%s: %s/%s", name, now, want)
}

func quantityCell(q *resource.Quantity) string {
	if q == nil {
		return "<nil>"
	}
	return q.String()
}
