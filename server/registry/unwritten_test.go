package registry

import (
	"context"
	"fmt"
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

// Clients of a server that is not one any more are to try another one.
func TestStoreWithoutAGroup(t *testing.T) {
	for _, err := range []error{store.ErrClosed, store.ErrNotLeader, store.ErrRemoved, store.ErrSuperseded} {
		wantStatus(t, storeFailure(fmt.Errorf("store: %w", err)), 503, metav1.StatusReasonServiceUnavailable, err.Error())
	}
}

// A follower's memory may be old. What changes nothing there is no answer yet.
func TestUnchangedIsHeldAgainstTheNewest(t *testing.T) {
	f := newFixture(t)
	cms := Of[*corev1.ConfigMap](f.Registry)
	first := create(f, f.configMap("cm", "n", "1"))
	old, _ := f.store.Get("configmaps/default/cm")
	if old == nil {
		t.Fatal("the key is another one")
	}
	next := first.DeepCopy()
	next.Data["n"] = "2"
	second, err := cms.Update(f.ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	f.read = func(string) (*store.Entry, int64) { return old, old.ModRevision }

	out, _, err := f.Patch(f.ctx, f.cms, "", "default", "cm", types.MergePatchType, []byte(`{}`), nil)
	if err != nil || out.(*corev1.ConfigMap).ResourceVersion != second.ResourceVersion {
		t.Errorf("an empty patch shows %v, %v instead of version %s", out, err, second.ResourceVersion)
	}
	_, err = cms.Update(f.ctx, first.DeepCopy())
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "")
}

// The same for a deletion that is under way already.
func TestRepeatedDeleteIsHeldAgainstTheNewest(t *testing.T) {
	f := newFixture(t)
	pods := Of[*corev1.Pod](f.Registry)
	create(f, f.pod("web", "node1"))
	if err := pods.Delete(f.ctx, "default", "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	old, _ := f.store.Get("pods/default/web")
	if old == nil || old.Object.(*corev1.Pod).DeletionTimestamp == nil {
		t.Fatalf("the pod is not being deleted: %+v", old)
	}
	if err := pods.Delete(f.ctx, "default", "web", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	f.read = func(string) (*store.Entry, int64) { return old, old.ModRevision }
	_, _, err := f.Delete(f.ctx, f.pods, "default", "web", &metav1.DeleteOptions{})
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, "")
}
