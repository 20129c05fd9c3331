// Package harness runs controllers over a real registry and store, with a
// recorder of events and a stand-in for scheduler and nodes, for tests.
package harness

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
	"orch/server/registry/kinds"
	"orch/store"
)

// Namespace is there from the start.
const Namespace = "ns"

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// Harness is a small control plane in a temporary directory.
type Harness struct {
	*registry.Registry
	Pods   *children.Index
	Events *Recorder

	t   testing.TB
	ctx context.Context // of the test; the harness is no longer-lived than it
}

// New starts a store and makes the namespace; everything ends with the test.
func New(t testing.TB) *Harness {
	t.Helper()
	_, services, _ := net.ParseCIDR("10.43.0.0/16")
	r, err := registry.New(registry.Config{Resources: kinds.Table(kinds.Config{ServiceCIDR: services})})
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(store.Config{Dir: t.TempDir(), Codec: r.StoreCodec(), Logger: Logger()})
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
	h := &Harness{Registry: r, Pods: children.NewIndex(r), Events: &Recorder{}, t: t, ctx: ctx}
	Create(h, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}})
	return h
}

// Context ends with the test.
func (h *Harness) Context() context.Context { return h.ctx }

// Logger writes nowhere.
func Logger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// Run runs controllers until the test ends.
func (h *Harness) Run(controllers ...*loop.Controller) {
	h.Go(func(ctx context.Context) error { return loop.Run(ctx, Logger(), controllers...) })
}

// Go runs something else until the test ends.
func (h *Harness) Go(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(h.ctx)
	var running errgroup.Group
	running.Go(func() error { return run(ctx) })
	h.t.Cleanup(func() {
		cancel()
		_ = running.Wait() // only says that ctx ended
	})
}

// Create stores obj or ends the test.
func Create[T registry.Object](h *Harness, obj T) T {
	h.t.Helper()
	out, err := registry.Of[T](h.Registry).Create(h.ctx, obj)
	if err != nil {
		h.t.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
	}
	return out
}

// Change changes an object of the namespace, or ends the test.
func Change[T registry.Object](h *Harness, name string, change func(T)) T {
	h.t.Helper()
	out, err := registry.Of[T](h.Registry).Mutate(h.ctx, Namespace, name, func(obj T) error { change(obj); return nil })
	if err != nil {
		h.t.Fatalf("change %T %s: %v", out, name, err)
	}
	return out
}

// ChangeStatus changes the status of an object of the namespace, or ends the test.
func ChangeStatus[T registry.Object](h *Harness, name string, change func(T)) T {
	h.t.Helper()
	out, err := registry.Of[T](h.Registry).MutateStatus(h.ctx, Namespace, name, func(obj T) error { change(obj); return nil })
	if err != nil {
		h.t.Fatalf("change the status of %T %s: %v", out, name, err)
	}
	return out
}

// Get reads an object of the namespace, or ends the test.
func Get[T registry.Object](h *Harness, name string) T {
	h.t.Helper()
	out, err := registry.Of[T](h.Registry).Get(Namespace, name)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// Delete deletes an object of the namespace, or ends the test.
func Delete[T registry.Object](h *Harness, name string) {
	h.t.Helper()
	if err := registry.Of[T](h.Registry).Delete(h.ctx, Namespace, name, metav1.DeleteOptions{}); err != nil {
		h.t.Fatal(err)
	}
}

// List gives all objects of a kind in the namespace.
func List[T registry.Object](h *Harness) []T { return registry.Of[T](h.Registry).List(Namespace, nil) }

// errDone ends a wait.
var errDone = errors.New("harness: it has come")

// Wait waits until an object called name satisfies ok; what says it in words.
func Wait[T registry.Object](h *Harness, name, what string, ok func(T) bool) T {
	h.t.Helper()
	var found T
	WaitAll(h, what, func(all []T) bool {
		for _, obj := range all {
			if obj.GetName() == name && ok(obj) {
				found = obj
				return true
			}
		}
		return false
	})
	return found
}

// WaitAll waits until all objects of a kind in the namespace (or without one)
// satisfy ok.
func WaitAll[T registry.Object](h *Harness, what string, ok func([]T) bool) []T {
	h.t.Helper()
	ctx, cancel := context.WithTimeoutCause(h.ctx, patience, context.DeadlineExceeded)
	defer cancel()
	done, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	door := registry.Of[T](h.Registry)
	var all []T
	look := func() {
		if all = door.List("", nil); door.Resource().Namespaced {
			all = door.List(Namespace, nil)
		}
		if ok(all) {
			stop(errDone)
		}
	}
	err := door.Watch(done, func(_, _ T, _ bool) {
		if context.Cause(done) == nil {
			look()
		}
	}, look)
	if !errors.Is(err, errDone) {
		h.t.Fatalf("waiting for %s: %v; last seen %d objects: %s; events:\n%s", what, err, len(all), describe(all), h.Events)
	}
	return all
}
