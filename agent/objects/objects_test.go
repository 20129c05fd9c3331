package objects_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"orch/agent/objects"
	"orch/agent/objects/objectstest"
)

var ref = objects.Ref{Kind: objects.ConfigMap, Namespace: "ns", Name: "settings"}

func settings(version, value string, immutable bool) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "settings", ResourceVersion: version},
		Data:       map[string]string{"key": value}, Immutable: &immutable,
	}
}

// play runs a test on a running cache, in a bubble: what is to happen has
// happened after synctest.Wait.
func play(t *testing.T, api *objectstest.API, test func(ctx context.Context, c *objects.Cache, changes *[]objects.Ref)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var changes []objects.Ref
		c := objects.New(api, slog.New(slog.DiscardHandler), func(r objects.Ref) { changes = append(changes, r) })
		var running errgroup.Group
		running.Go(func() error { return c.Run(ctx) })
		test(ctx, c, &changes)
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func value(t *testing.T, ctx context.Context, c *objects.Cache) string {
	t.Helper()
	o, err := c.ConfigMap(ctx, "ns", "settings")
	if err != nil {
		t.Fatal(err)
	}
	return o.Data["key"]
}

func TestFollowsWhatIsUsed(t *testing.T) {
	api := objectstest.New(settings("1", "one", false))
	play(t, api, func(ctx context.Context, c *objects.Cache, changes *[]objects.Ref) {
		c.Use(ref)
		c.Use(ref)
		if got := value(t, ctx, c); got != "one" {
			t.Errorf("first value is %q", got)
		}
		synctest.Wait()
		if n := api.Watches.Load(); n != 1 {
			t.Errorf("%d watches for one object", n)
		}
		if _, err := api.CoreV1().ConfigMaps("ns").Update(ctx, settings("2", "two", false), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := value(t, ctx, c); got != "two" || len(*changes) != 1 {
			t.Errorf("after an update: %q, changes %v", got, *changes)
		}
		if err := api.CoreV1().ConfigMaps("ns").Delete(ctx, "settings", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := c.ConfigMap(ctx, "ns", "settings"); !apierrors.IsNotFound(err) || len(*changes) != 2 {
			t.Errorf("after deletion: %v, changes %v", err, *changes)
		}
		c.Release(ref)
		synctest.Wait()
		if n := api.Watches.Load(); n != 1 {
			t.Errorf("%d watches while one user is left", n)
		}
		c.Release(ref)
		synctest.Wait()
		if n := api.Watches.Load(); n != 0 {
			t.Errorf("%d watches after the last release", n)
		}
	})
}

func TestAbsentObjectIsFoundAtOnce(t *testing.T) {
	api := objectstest.New()
	play(t, api, func(ctx context.Context, c *objects.Cache, _ *[]objects.Ref) {
		c.Use(ref)
		if _, err := c.ConfigMap(ctx, "ns", "settings"); !apierrors.IsNotFound(err) {
			t.Fatalf("absent object: %v", err)
		}
		if err := api.Tracker().Add(settings("1", "one", false)); err != nil {
			t.Fatal(err)
		}
		if got := value(t, ctx, c); got != "one" { // before the watch can have told
			t.Error(got)
		}
	})
}

func TestImmutableObjectNeedsNoWatch(t *testing.T) {
	api := objectstest.New(settings("1", "one", true))
	play(t, api, func(ctx context.Context, c *objects.Cache, _ *[]objects.Ref) {
		c.Use(ref)
		if got := value(t, ctx, c); got != "one" {
			t.Error(got)
		}
		synctest.Wait()
		if n := api.Watches.Load(); n != 0 {
			t.Errorf("%d watches of an immutable object", n)
		}
		// Another user sees an object that was deleted and made anew.
		if err := api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("configmaps"), settings("9", "nine", true), "ns"); err != nil {
			t.Fatal(err)
		}
		if got := value(t, ctx, c); got != "one" {
			t.Error("read again without need", got)
		}
		c.Use(ref)
		if got := value(t, ctx, c); got != "nine" {
			t.Error(got)
		}
	})
}

func TestFailuresReachReadersAndAreRetried(t *testing.T) {
	api := objectstest.New(settings("1", "one", false))
	var broken atomic.Bool
	broken.Store(true)
	fail := func(clienttesting.Action) (bool, runtime.Object, error) {
		return broken.Load(), nil, errors.New("no server")
	}
	api.PrependReactor("*", "configmaps", fail)
	play(t, api, func(ctx context.Context, c *objects.Cache, changes *[]objects.Ref) {
		c.Use(ref)
		if _, err := c.ConfigMap(ctx, "ns", "settings"); err == nil {
			t.Fatal("no error")
		}
		synctest.Wait()
		broken.Store(false)
		<-time.After(time.Minute) // of the bubble: retries have happened
		synctest.Wait()
		if got := value(t, ctx, c); got != "one" || api.Watches.Load() != 1 || len(*changes) != 1 {
			t.Errorf("%q, %d watches, changes %v", got, api.Watches.Load(), *changes)
		}
	})
}
