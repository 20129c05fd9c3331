package kinds

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

func configMaps() *registry.Resource {
	return entry[corev1.ConfigMap, corev1.ConfigMapList](corev1.SchemeGroupVersion, "configmaps", traits[*corev1.ConfigMap]{
		ShortNames:          []string{"cm"},
		Validate:            validateConfigMap,
		ValidateUpdate:      validateConfigMapUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("Data", "string", doc(corev1.ConfigMap{}, "data")), ageColumn()),
		Row: func(c *corev1.ConfigMap, now time.Time) []any {
			return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), age(c, now)}
		},
	})
}
