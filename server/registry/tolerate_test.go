package registry

import (
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestTolerate: what a later version refuses is kept where it was, not anew.
func TestTolerate(t *testing.T) {
	at := field.NewPath("spec", "ips")
	tight := func(i int, ip string) *field.Error {
		return field.Invalid(at.Index(i), ip, "tight").WithOrigin(Tightened)
	}
	old := func() field.ErrorList { return field.ErrorList{tight(0, "010.0.0.1")} }
	plain := field.Invalid(at, "x", "wrong")
	got := tolerate(field.ErrorList{tight(3, "010.0.0.1"), tight(1, "010.0.0.2"), plain}, old)
	if len(got) != 2 || got[0].BadValue != "010.0.0.2" || got[1] != plain {
		t.Errorf("got %v", got)
	}
	if got := tolerate(field.ErrorList{plain}, func() field.ErrorList { panic("asked without need") }); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}
