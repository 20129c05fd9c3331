package kinds

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/registry"
)

// TestComponentStatuses: the three that upstream has, made for each read.
func TestComponentStatuses(t *testing.T) {
	f := newFixture(t)
	res := f.Lookup("", "v1", "componentstatuses")
	page, err := f.List(f.ctx, res, registry.Selection{}, nil)
	if err != nil || len(page.Items) != 3 {
		t.Fatalf("%v, %v", page, err)
	}
	for i, want := range []string{"scheduler", "controller-manager", "etcd-0"} {
		got := page.Items[i].(*corev1.ComponentStatus)
		if c := got.Conditions[0]; got.Name != want || c.Type != corev1.ComponentHealthy || c.Status != corev1.ConditionTrue || c.Message != "ok" {
			t.Errorf("%d: %+v", i, got)
		}
	}
	one, err := f.Get(f.ctx, res, "", "etcd-0", nil)
	if err != nil || one.GetName() != "etcd-0" {
		t.Errorf("%v, %v", one, err)
	}
	if _, err := f.Get(f.ctx, res, "", "etcd-1", nil); !apierrors.IsNotFound(err) {
		t.Errorf("a fourth: %v", err)
	}
	page, err = f.List(f.ctx, res, registry.Selection{Fields: fields.OneTermEqualSelector("metadata.name", "scheduler")}, nil)
	if err != nil || len(page.Items) != 1 {
		t.Errorf("selected: %v, %v", page, err)
	}
	disabled := Config{Disabled: func(part string) bool { return part == "scheduler" }}
	if c := componentStatus(disabled, "scheduler", "scheduler", nil).Conditions[0]; c.Status != corev1.ConditionUnknown {
		t.Errorf("left out: %+v", c)
	}
}
