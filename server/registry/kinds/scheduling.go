package kinds

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"orch/server/registry"
)

func priorityClasses() *registry.Resource {
	return entry[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", traits[*schedulingv1.PriorityClass]{
		ShortNames: []string{"pc"}, Cluster: true,
		Spec:                within(func(c *schedulingv1.PriorityClass) *int32 { return &c.Value }), // for a generation of 1
		Default:             func(c *schedulingv1.PriorityClass) { setDefault(&c.PreemptionPolicy, corev1.PreemptLowerPriority) },
		Validate:            validatePriorityClass,
		ValidateUpdate:      validatePriorityClassUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Value", "integer", doc(schedulingv1.PriorityClass{}, "value")),
			column("Global-Default", "boolean", doc(schedulingv1.PriorityClass{}, "globalDefault")),
			ageColumn(),
			column("PreemptionPolicy", "string", doc(schedulingv1.PriorityClass{}, "preemptionPolicy")),
		),
		Row: func(c *schedulingv1.PriorityClass, now time.Time) []any {
			return []any{c.Name, int64(c.Value), c.GlobalDefault, age(c, now), textOr(c.PreemptionPolicy, "")}
		},
	})
}

func runtimeClasses() *registry.Resource {
	return entry[nodev1.RuntimeClass, nodev1.RuntimeClassList](nodev1.SchemeGroupVersion, "runtimeclasses", traits[*nodev1.RuntimeClass]{
		Cluster:        true,
		Validate:       validateRuntimeClass,
		ValidateUpdate: validateRuntimeClassUpdate,
		CreateOnUpdate: true,
		Columns:        columns(nameColumn(), column("Handler", "string", doc(nodev1.RuntimeClass{}, "handler")), ageColumn()),
		Row: func(c *nodev1.RuntimeClass, now time.Time) []any {
			return []any{c.Name, c.Handler, age(c, now)}
		},
	})
}
