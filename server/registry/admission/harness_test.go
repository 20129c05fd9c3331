package admission

import (
	"context"
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"

	"orch/server/auth"
	"orch/server/registry"
	"orch/server/registry/kinds"
	"orch/store"
)

// newRegistry gives a registry on a real store, with these plugins and the
// namespace "ns".
func newRegistry(t testing.TB, plugins ...registry.Admission) *registry.Registry {
	t.Helper()
	_, serviceCIDR, _ := net.ParseCIDR("10.43.0.0/16")
	r, err := registry.New(registry.Config{Resources: kinds.Table(kinds.Config{ServiceCIDR: serviceCIDR}), Admission: plugins})
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(store.Config{Dir: t.TempDir(), Codec: r.StoreCodec()})
	r.UseStore(s)
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
	<-s.Ready()
	create(t, r, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	return r
}

func create[T registry.Object](t testing.TB, r *registry.Registry, obj T) T {
	t.Helper()
	out, err := registry.Of[T](r).Create(t.Context(), obj)
	if err != nil {
		t.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
	}
	return out
}

func as(name string, groups ...string) context.Context {
	return auth.WithUser(context.Background(), &auth.User{Name: name, Groups: groups})
}

// pod is a valid pod with one container.
func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "orch.local/hello"}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// wantForbidden checks the reason and the part of the message after
// "is forbidden: ".
func wantForbidden(t *testing.T, err error, message string) {
	t.Helper()
	if !apierrors.IsForbidden(err) {
		t.Fatalf("got error %v, want Forbidden: %s", err, message)
	}
	if got := err.Error(); len(got) < len(message) || got[len(got)-len(message):] != message {
		t.Errorf("message\n got  %s\n want …%s", got, message)
	}
}

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func now() time.Time { return testTime }
