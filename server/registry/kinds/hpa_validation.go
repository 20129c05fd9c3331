package kinds

import (
	"fmt"
	"slices"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateHPA(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &h.Spec
	least := derefOr(s.MinReplicas, 1)
	if least < 1 {
		f.invalid(at.Child("minReplicas"), least, "must be greater than or equal to 1")
	}
	switch {
	case s.MaxReplicas == 0:
		f.required(at.Child("maxReplicas"), "must be set and greater than 0")
	case s.MaxReplicas < 0:
		f.invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to 1")
	}
	if s.MaxReplicas < least {
		f.invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	f.scaleTarget(at.Child("scaleTargetRef"), s.ScaleTargetRef)
	for i := range s.Metrics {
		f.metric(at.Child("metrics").Index(i), &s.Metrics[i])
	}
	if least == 0 && !scalesFromZero(s.Metrics) {
		f.forbidden(at.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas")
	}
	if b := s.Behavior; b != nil {
		f.scalingRules(at.Child("behavior", "scaleUp"), b.ScaleUp)
		f.scalingRules(at.Child("behavior", "scaleDown"), b.ScaleDown)
	}
	return f.list
}

// scalesFromZero tells whether some metric exists without any pod.
func scalesFromZero(metrics []autoscalingv2.MetricSpec) bool {
	return slices.ContainsFunc(metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	})
}

func (f *faults) objectReference(at *field.Path, ref autoscalingv2.CrossVersionObjectReference) {
	f.present(at.Child("kind"), ref.Kind, pathSegment)
	f.present(at.Child("name"), ref.Name, pathSegment)
}

// scaleTarget is a reference whose API version must lead to a scale.
func (f *faults) scaleTarget(at *field.Path, ref autoscalingv2.CrossVersionObjectReference) {
	f.objectReference(at, ref)
	if gv, err := schema.ParseGroupVersion(ref.APIVersion); err != nil {
		f.invalid(at.Child("apiVersion"), ref.APIVersion, err.Error())
	} else if gv.Group == "" && ref.Kind != "ReplicationController" {
		f.invalid(at.Child("apiVersion"), ref.APIVersion, "apiVersion must specify API group")
	}
}

func pathSegment(name string) []string { return pathSegmentName(name, false) }

func (f *faults) metric(at *field.Path, m *autoscalingv2.MetricSpec) {
	types := []autoscalingv2.MetricSourceType{
		autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
		autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType,
	}
	if m.Type == "" {
		f.required(at.Child("type"), "must specify a metric source type")
	}
	supports(f, at.Child("type"), m.Type, types...)
	sources := []struct {
		kind  autoscalingv2.MetricSourceType
		name  string
		is    bool
		check func(*field.Path)
	}{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) {
			f.objectReference(p.Child("describedObject"), m.Object.DescribedObject)
			f.metricTarget(p, m.Object.Metric, m.Object.Target)
		}},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) {
			f.metricTarget(p, m.External.Metric, m.External.Target)
		}},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) { f.podsMetric(p, m.Pods) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) {
			f.resourceMetric(p, m.Resource.Name, m.Resource.Target)
		}},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil, func(p *field.Path) {
			f.present(p.Child("container"), m.ContainerResource.Container, nil)
			f.resourceMetric(p, m.ContainerResource.Name, m.ContainerResource.Target)
		}},
	}
	present := 0
	for _, s := range sources {
		if s.is {
			present++
		}
	}
	for _, s := range sources {
		switch {
		case s.is && s.kind == m.Type:
			s.check(at.Child(s.name))
		case s.is && present > 1:
			f.forbidden(at.Child(s.name), "must populate the given metric source only")
		case s.kind == m.Type:
			f.required(at.Child(s.name), "must populate information for the given metric source")
		}
	}
}

func (f *faults) metricTarget(at *field.Path, id autoscalingv2.MetricIdentifier, t autoscalingv2.MetricTarget) {
	f.metricName(at.Child("metric", "name"), id.Name)
	f.targetValues(at.Child("target"), t)
	if t.Value == nil && t.AverageValue == nil {
		f.required(at.Child("target", "averageValue"), "must set either a target value or averageValue")
	}
}

func (f *faults) metricName(at *field.Path, name string) {
	if name == "" {
		f.required(at, "must specify a metric name")
		return
	}
	f.invalids(at, name, pathSegment(name))
}

func (f *faults) targetValues(at *field.Path, t autoscalingv2.MetricTarget) {
	if t.Type == "" {
		f.required(at.Child("type"), "must specify a metric target type")
	}
	if t.Type != autoscalingv2.UtilizationMetricType && t.Type != autoscalingv2.ValueMetricType && t.Type != autoscalingv2.AverageValueMetricType {
		f.invalid(at.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	for name, q := range map[string]*resource.Quantity{"value": t.Value, "averageValue": t.AverageValue} {
		if q != nil && q.Sign() != 1 {
			f.invalid(at.Child(name), q, "must be positive")
		}
	}
	if u := t.AverageUtilization; u != nil && *u < 1 {
		f.invalid(at.Child("averageUtilization"), u, "must be greater than 0")
	}
}

func (f *faults) podsMetric(at *field.Path, m *autoscalingv2.PodsMetricSource) {
	f.metricName(at.Child("metric", "name"), m.Metric.Name)
	f.targetValues(at.Child("target"), m.Target)
	if m.Target.AverageValue == nil {
		f.required(at.Child("target", "averageValue"), "must specify a positive target averageValue")
	}
}

func (f *faults) resourceMetric(at *field.Path, name corev1.ResourceName, t autoscalingv2.MetricTarget) {
	if name == "" {
		f.required(at.Child("name"), "must specify a resource name")
	}
	f.targetValues(at.Child("target"), t)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		f.required(at.Child("target", "averageUtilization"), "must set either a target raw value or a target utilization")
	case t.AverageUtilization != nil && t.AverageValue != nil:
		f.forbidden(at.Child("target", "averageValue"), "may not set both a target raw value and a target utilization")
	}
}

func (f *faults) scalingRules(at *field.Path, r *autoscalingv2.HPAScalingRules) {
	const maxWindow, maxPeriod = 3600, 1800
	switch w := derefOr(r.StabilizationWindowSeconds, 0); {
	case w < 0:
		f.invalid(at.Child("stabilizationWindowSeconds"), r.StabilizationWindowSeconds, "must be greater than or equal to zero")
	case w > maxWindow:
		f.invalid(at.Child("stabilizationWindowSeconds"), r.StabilizationWindowSeconds, fmt.Sprintf("must be less than or equal to %v", maxWindow))
	}
	supports(f, at.Child("selectPolicy"), *r.SelectPolicy, autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)
	if len(r.Policies) == 0 {
		f.required(at.Child("policies"), "must specify at least one Policy")
	}
	for i, p := range r.Policies {
		path := at.Child("policies").Index(i)
		supports(f, path.Child("type"), p.Type, autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)
		f.positive(path.Child("value"), int64(p.Value))
		f.positive(path.Child("periodSeconds"), int64(p.PeriodSeconds))
		if p.PeriodSeconds > maxPeriod {
			f.invalid(path.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxPeriod))
		}
	}
	if r.Tolerance != nil {
		f.quantity(at.Child("tolerance"), *r.Tolerance)
	}
}
