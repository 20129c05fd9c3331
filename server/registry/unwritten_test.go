package registry

import (
	"context"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/store"
)

// A write whose outcome is unknown is not tried again on what is there now: it
// may be there because the write happened.
func TestUnknownOutcomeIsToldOnce(t *testing.T) {
	f := newFixture(t)
	cms := Of[*corev1.ConfigMap](f.Registry)
	cm := create(f, f.configMap("cm", "n", "1"))
	happens := f.write
	writes := 0
	f.write = func(ctx context.Context, ops ...store.Op) ([]*store.Entry, error) {
		writes++
		if _, err := happens(ctx, ops...); err != nil {
			return nil, err
		}
		return nil, store.ErrUnknownOutcome
	}
	unknown := func(err error) {
		t.Helper()
		wantStatus(t, err, 504, metav1.StatusReasonTimeout, store.ErrUnknownOutcome.Error())
	}

	changed := cm.DeepCopy()
	changed.Data["n"] = "2"
	_, err := cms.Update(f.ctx, changed)
	unknown(err)

	_, _, err = f.Patch(f.ctx, f.cms, "", "default", "cm", types.JSONPatchType, []byte(`[{"op":"copy","from":"/data/n","path":"/data/o"}]`), nil)
	unknown(err)

	unknown(cms.Delete(f.ctx, "default", "cm", metav1.DeleteOptions{}))
	if writes != 3 {
		t.Errorf("%d writes for 3 requests", writes)
	}
	first, _ := strconv.ParseInt(cm.ResourceVersion, 10, 64)
	if now := f.store.Revision(); now != first+3 {
		t.Errorf("revision %d after 3 writes, %d before", now, first)
	}
}
