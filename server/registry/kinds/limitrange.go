package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

func limitRanges() *registry.Resource {
	return entry[corev1.LimitRange, corev1.LimitRangeList](corev1.SchemeGroupVersion, "limitranges", traits[*corev1.LimitRange]{
		ShortNames:     []string{"limits"},
		Default:        defaultLimitRange,
		Validate:       validateLimitRange,
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: plainColumns(),
		Row:     plainRow[*corev1.LimitRange],
	})
}

// defaultLimitRange follows max → default limit → default request ← min.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		if item.Default == nil {
			item.Default = corev1.ResourceList{}
		}
		if item.DefaultRequest == nil {
			item.DefaultRequest = corev1.ResourceList{}
		}
		addMissing(item.Default, item.Max)
		addMissing(item.DefaultRequest, item.Default)
		addMissing(item.DefaultRequest, item.Min)
	}
}

func addMissing(to, from corev1.ResourceList) {
	for name, q := range from {
		if _, ok := to[name]; !ok {
			to[name] = q.DeepCopy()
		}
	}
}

func resourceQuotas() *registry.Resource {
	return entry[corev1.ResourceQuota, corev1.ResourceQuotaList](corev1.SchemeGroupVersion, "resourcequotas", traits[*corev1.ResourceQuota]{
		ShortNames: []string{"quota"}, Unnumbered: true,
		Spec:                within(func(q *corev1.ResourceQuota) *corev1.ResourceQuotaSpec { return &q.Spec }),
		Status:              within(func(q *corev1.ResourceQuota) *corev1.ResourceQuotaStatus { return &q.Status }),
		StatusValidate:      validateResourceQuotaStatus,
		Default:             func(q *corev1.ResourceQuota) { roundToMilli(q.Spec.Hard) },
		Validate:            validateResourceQuota,
		ValidateUpdate:      validateResourceQuotaUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume."),
			column("Limit", "string", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
			ageColumn(),
		),
		Row: resourceQuotaRow,
	})
}

func resourceQuotaRow(q *corev1.ResourceQuota, now time.Time) []any {
	var requests, limits []string
	names := make([]corev1.ResourceName, 0, len(q.Status.Hard))
	for name := range q.Status.Hard {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		used, hard := q.Status.Used[name], q.Status.Hard[name]
		cell := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
		if strings.HasPrefix(string(name), "limits.") {
			limits = append(limits, cell)
		} else {
			requests = append(requests, cell)
		}
	}
	return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), age(q, now)}
}
