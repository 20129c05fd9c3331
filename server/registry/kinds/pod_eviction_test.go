package kinds

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

func TestTakeDisruption(t *testing.T) {
	budget := func(status policyv1.PodDisruptionBudgetStatus) *policyv1.PodDisruptionBudget {
		return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b", Generation: 2}, Status: status}
	}
	for _, test := range []struct {
		name   string
		status policyv1.PodDisruptionBudgetStatus
		want   string
	}{
		{"allowed", policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, DisruptionsAllowed: 1}, ""},
		{"not looked at", policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 1},
			"The disruption budget b is still being processed by the server."},
		{"spent", policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, CurrentHealthy: 2, DesiredHealthy: 2},
			"The disruption budget b needs 2 healthy pods and has 2 currently"},
		{"failed", policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, CurrentHealthy: 3, DesiredHealthy: 2,
			Conditions: []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: "False", Reason: policyv1.SyncFailedReason, Message: "no scale"}}},
			"The disruption budget b does not allow evicting pods currently because it failed sync: no scale"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := budget(test.status)
			err := takeDisruption(b, "web", metav1.NewTime(testTime))
			if test.want == "" {
				if _, kept := b.Status.DisruptedPods["web"]; err != nil || !kept || b.Status.DisruptionsAllowed != 0 {
					t.Errorf("got %v, status %+v", err, b.Status)
				}
				return
			}
			if list := causes(err); !apierrors.IsTooManyRequests(err) || len(list) != 1 || list[0] != ": "+test.want || err.Error() != wouldViolate {
				t.Errorf("got %v %q, want %s", err, list, test.want)
			}
		})
	}
}

// TestEviction takes the one disruption a budget allows; the next is refused.
func TestEviction(t *testing.T) {
	f := newFixture(t)
	pods, budgets := registry.Of[*corev1.Pod](f.Registry), registry.Of[*policyv1.PodDisruptionBudget](f.Registry)
	put(f, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "default"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		},
	})
	if _, err := budgets.MutateStatus(f.ctx, "default", "b", func(b *policyv1.PodDisruptionBudget) error {
		b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		put(f, testPod(func(p *corev1.Pod) { p.Name, p.Spec.NodeName = name, "node" }))
		if _, err := pods.MutateStatus(f.ctx, "default", name, func(p *corev1.Pod) error {
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	evict := func(name string) error {
		body := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
		_, err := createEviction(f.ctx, f.Registry, "default", name, body, &metav1.CreateOptions{})
		return err
	}
	if err := evict("one"); err != nil {
		t.Fatal(err)
	}
	gone, err := pods.Get("default", "one")
	if err != nil || gone.DeletionTimestamp == nil || podCondition(gone, corev1.DisruptionTarget) == nil {
		t.Errorf("the pod is not being evicted: %v %+v", err, gone)
	}
	put(f, testPod(func(p *corev1.Pod) { p.Name, p.Labels = "other", nil }))
	_, err = createEviction(f.ctx, f.Registry, "default", "other", &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Name: "other", Namespace: "default"},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("x")},
	}, &metav1.CreateOptions{})
	if !apierrors.IsConflict(err) {
		t.Errorf("another pod's UID: %v", err)
	}
	if err := evict("two"); !apierrors.IsTooManyRequests(err) {
		t.Errorf("the budget was overspent: %v", err)
	}
}
