package kinds

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/registry"
)

func secrets() *registry.Resource {
	return entry[corev1.Secret, corev1.SecretList](corev1.SchemeGroupVersion, "secrets", traits[*corev1.Secret]{
		Default: defaultSecret,
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, s, old *corev1.Secret) error {
			setZero(&s.Type, old.Type)
			return nil
		},
		Warnings:            secretWarnings,
		Validate:            validateSecret,
		ValidateUpdate:      validateSecretUpdate,
		Fields:              func(s *corev1.Secret) fields.Set { return fields.Set{"type": string(s.Type)} },
		UnconditionalUpdate: true,
		Encrypt:             true,
		Columns: columns(
			nameColumn(),
			column("Type", "string", doc(corev1.Secret{}, "type")),
			column("Data", "string", doc(corev1.Secret{}, "data")),
			ageColumn(),
		),
		Row: func(s *corev1.Secret, now time.Time) []any {
			return []any{s.Name, string(s.Type), int64(len(s.Data)), age(s, now)}
		},
	})
}

// defaultSecret also moves stringData, which is for writing only, into data.
func defaultSecret(s *corev1.Secret) {
	setZero(&s.Type, corev1.SecretTypeOpaque)
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for k, v := range s.StringData {
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}
