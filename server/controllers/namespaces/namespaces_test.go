package namespaces

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
	"orch/server/registry"
)

func condition(ns *corev1.Namespace, kind corev1.NamespaceConditionType) (c corev1.NamespaceCondition) {
	for _, found := range ns.Status.Conditions {
		if found.Type == kind {
			c = found
		}
	}
	return c
}

func TestNamespaceIsEmptiedAndGoes(t *testing.T) {
	h := harness.New(t)
	h.Run(Controller(h.Registry, time.Now))
	h.AddNode("node")
	template := harness.Template("web")
	template.Spec.NodeName = "node"
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "p"}, Spec: template.Spec})
	harness.Create(h, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "held", Finalizers: []string{"example.com/hold"}}})
	harness.Create(h, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "s"}})
	door := registry.Of[*corev1.Namespace](h.Registry)
	if err := door.Delete(h.Context(), "", harness.Namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ns := harness.Wait(h, harness.Namespace, "the pods to be waited for", func(ns *corev1.Namespace) bool {
		return condition(ns, corev1.NamespaceContentRemaining).Message == "Some resources are remaining: pods. has 1 resource instances"
	})
	if ns.Status.Phase != corev1.NamespaceTerminating || condition(ns, corev1.NamespaceDeletionDiscoveryFailure).Status != corev1.ConditionFalse {
		t.Errorf("status %+v", ns.Status)
	}
	// What pods may need stays until they are gone.
	harness.Get[*corev1.Secret](h, "s")
	zero := int64(0)
	if err := registry.Of[*corev1.Pod](h.Registry).Delete(h.Context(), harness.Namespace, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	ns = harness.Wait(h, harness.Namespace, "the finalizer to be waited for", func(ns *corev1.Namespace) bool {
		return condition(ns, corev1.NamespaceFinalizersRemaining).Status == corev1.ConditionTrue
	})
	if got := condition(ns, corev1.NamespaceFinalizersRemaining).Message; got != "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances" {
		t.Errorf("message %q", got)
	}
	harness.Change(h, "held", func(m *corev1.ConfigMap) { m.Finalizers = nil })
	harness.WaitAll(h, "the namespace gone", func(all []*corev1.Namespace) bool { return len(all) == 0 })
}

func TestConditions(t *testing.T) {
	conditions := plan(&contents{failures: []error{errors.New("b"), errors.New("a")}})
	for _, c := range conditions {
		if c.Type == corev1.NamespaceDeletionContentFailure && c.Message != "Failed to delete all resource types, 2 remaining: a, b" {
			t.Errorf("message %q", c.Message)
		}
	}
	status := corev1.NamespaceStatus{}
	now := time.Now()
	for range 2 {
		for _, c := range conditions {
			setCondition(&status, c, now)
		}
		now = now.Add(time.Hour)
	}
	if len(status.Conditions) != 5 || time.Since(status.Conditions[0].LastTransitionTime.Time) < -time.Minute {
		t.Errorf("conditions %+v", status.Conditions)
	}
}
