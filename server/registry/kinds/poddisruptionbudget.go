package kinds

import (
	"time"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

func podDisruptionBudgets() *registry.Resource {
	return entry[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](policyv1.SchemeGroupVersion, "poddisruptionbudgets", traits[*policyv1.PodDisruptionBudget]{
		ShortNames:     []string{"pdb"},
		Spec:           within(func(b *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudgetSpec { return &b.Spec }),
		Status:         within(func(b *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudgetStatus { return &b.Status }),
		StatusValidate: validatePodDisruptionBudgetStatus,
		Validate:       validatePodDisruptionBudget,
		Columns: columns(
			nameColumn(),
			column("Min Available", "string", "The minimum number of pods that must be available."),
			column("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
			column("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time."),
			ageColumn(),
		),
		Row: func(b *policyv1.PodDisruptionBudget, now time.Time) []any {
			return []any{
				b.Name, countCell(b.Spec.MinAvailable), countCell(b.Spec.MaxUnavailable),
				int64(b.Status.DisruptionsAllowed), age(b, now),
			}
		},
	})
}

func countCell(n *intstr.IntOrString) string {
	if n == nil {
		return "N/A"
	}
	return n.String()
}
