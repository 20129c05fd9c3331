package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/registry"
)

// BenchmarkPod is what the whole chain costs a new pod.
func BenchmarkPod(b *testing.B) {
	index := auth.NewRBAC()
	chain, err := Chain(Config{Authorizer: index, Escalation: auth.Escalation{RBAC: index, Authorizer: index}, Now: now})
	if err != nil {
		b.Fatal(err)
	}
	r := newRegistry(b)
	create(b, r, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "default"}})
	res := r.Lookup("", "v1", "pods")
	b.ReportAllocs()
	for b.Loop() {
		attempt := &registry.Attempt{Registry: r, Resource: res, Operation: registry.OperationCreate, Namespace: "ns", Name: "p", Object: pod("p")}
		for _, plugin := range chain {
			if err := plugin.Admit(b.Context(), attempt); err != nil {
				b.Fatal(err)
			}
		}
	}
}
