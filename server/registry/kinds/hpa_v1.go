package kinds

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

// Annotations that carry, through version 1, what only version 2 has.
const (
	hpaMetricsAnnotation        = "autoscaling.alpha.kubernetes.io/metrics"
	hpaCurrentMetricsAnnotation = "autoscaling.alpha.kubernetes.io/current-metrics"
	hpaBehaviorAnnotation       = "autoscaling.alpha.kubernetes.io/behavior"
	hpaConditionsAnnotation     = "autoscaling.alpha.kubernetes.io/conditions"
)

func horizontalPodAutoscalersV1() *registry.Resource {
	return entry[autoscalingv1.HorizontalPodAutoscaler, autoscalingv1.HorizontalPodAutoscalerList](autoscalingv1.SchemeGroupVersion, "horizontalpodautoscalers", traits[*autoscalingv1.HorizontalPodAutoscaler]{
		ShortNames: []string{"hpa"}, Categories: []string{"all"},
		Stored: &registry.Conversion{
			Resource: "horizontalpodautoscalers.autoscaling/v2",
			To: func(obj registry.Object) (registry.Object, error) {
				return hpaToV2(obj.(*autoscalingv1.HorizontalPodAutoscaler))
			},
			From: func(obj registry.Object) (registry.Object, error) {
				return hpaToV1(obj.(*autoscalingv2.HorizontalPodAutoscaler))
			},
		},
		Default:             func(h *autoscalingv1.HorizontalPodAutoscaler) { setDefault(&h.Spec.MinReplicas, 1) },
		UnconditionalUpdate: true,
		Columns:             horizontalPodAutoscalers().Columns,
		Subresources:        horizontalPodAutoscalers().Subresources, // views see the stored form
		Row: func(h *autoscalingv1.HorizontalPodAutoscaler, now time.Time) []any {
			v2, err := hpaToV2(h)
			if err != nil {
				return []any{h.Name, "", "<unknown>", "", int64(0), int64(0), age(h, now)}
			}
			return hpaRow(v2, now)
		},
	})
}

func hpaToV2(in *autoscalingv1.HorizontalPodAutoscaler) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	out := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: *in.ObjectMeta.DeepCopy(),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas,
			MaxReplicas:    in.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration,
			LastScaleTime:      in.Status.LastScaleTime,
			CurrentReplicas:    in.Status.CurrentReplicas,
			DesiredReplicas:    in.Status.DesiredReplicas,
		},
	}
	for annotation, into := range map[string]any{
		hpaMetricsAnnotation:        &out.Spec.Metrics,
		hpaCurrentMetricsAnnotation: &out.Status.CurrentMetrics,
		hpaBehaviorAnnotation:       &out.Spec.Behavior,
		hpaConditionsAnnotation:     &out.Status.Conditions,
	} {
		// A value that does not parse is somebody's own annotation: it says nothing.
		if value, ok := out.Annotations[annotation]; ok {
			_ = json.Unmarshal([]byte(value), into)
			delete(out.Annotations, annotation)
		}
	}
	if cpu := in.Spec.TargetCPUUtilizationPercentage; cpu != nil {
		out.Spec.Metrics = append(out.Spec.Metrics, cpuMetric(cpu))
	}
	return out, nil
}

func cpuMetric(percent *int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{
			Type: autoscalingv2.UtilizationMetricType, AverageUtilization: percent,
		}},
	}
}

// hpaToV1 keeps in annotations, in version 2's own form, what version 1 has no
// field for.
func hpaToV1(in *autoscalingv2.HorizontalPodAutoscaler) (*autoscalingv1.HorizontalPodAutoscaler, error) {
	out := &autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: *in.ObjectMeta.DeepCopy(),
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas,
			MaxReplicas:    in.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration,
			LastScaleTime:      in.Status.LastScaleTime,
			CurrentReplicas:    in.Status.CurrentReplicas,
			DesiredReplicas:    in.Status.DesiredReplicas,
		},
	}
	var others []autoscalingv2.MetricSpec
	for _, m := range in.Spec.Metrics {
		if m.Resource != nil && m.Resource.Name == corev1.ResourceCPU && m.Resource.Target.AverageUtilization != nil && out.Spec.TargetCPUUtilizationPercentage == nil {
			out.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
			continue
		}
		others = append(others, m)
	}
	for _, m := range in.Status.CurrentMetrics {
		if m.Resource != nil && m.Resource.Name == corev1.ResourceCPU {
			out.Status.CurrentCPUUtilizationPercentage = m.Resource.Current.AverageUtilization
		}
	}
	extra := make(map[string]any)
	if len(others) > 0 {
		extra[hpaMetricsAnnotation] = others
	}
	if len(in.Status.CurrentMetrics) > 0 {
		extra[hpaCurrentMetricsAnnotation] = in.Status.CurrentMetrics
	}
	if in.Spec.Behavior != nil {
		extra[hpaBehaviorAnnotation] = in.Spec.Behavior
	}
	if len(in.Status.Conditions) > 0 {
		extra[hpaConditionsAnnotation] = in.Status.Conditions
	}
	for annotation, value := range extra {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", annotation, err)
		}
		out.Annotations = overlay(maps.Clone(out.Annotations), map[string]string{annotation: string(text)})
	}
	return out, nil
}
