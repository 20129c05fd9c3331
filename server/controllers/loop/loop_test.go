package loop_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
	"orch/server/controllers/loop"
)

func TestRetriesAndComesBack(t *testing.T) {
	h := harness.New(t)
	var looks atomic.Int32
	done := make(chan struct{})
	h.Run(&loop.Controller{
		Name:    "test",
		Sources: []loop.Source{loop.Each[*corev1.ConfigMap](h.Registry)},
		Reconcile: func(_ context.Context, key loop.Key) (time.Duration, error) {
			if key != (loop.Key{Namespace: harness.Namespace, Name: "m"}) {
				t.Errorf("key %s", key)
			}
			switch looks.Add(1) {
			case 1:
				return 0, errors.New("try again")
			case 2:
				panic("and again")
			case 3:
				return time.Millisecond, nil
			case 4:
				close(done)
			}
			return 0, nil
		},
	})
	harness.Create(h, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "m"}})
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%d looks", looks.Load())
	}
}

func TestSourceThatFailsIsStartedAgain(t *testing.T) {
	h := harness.New(t)
	var starts atomic.Int32
	done := make(chan struct{})
	h.Run(&loop.Controller{
		Name: "test",
		Sources: []loop.Source{func(ctx context.Context, enqueue func(loop.Key)) error {
			if starts.Add(1) == 1 {
				return errors.New("broken")
			}
			enqueue(loop.Key{Name: "k"})
			<-ctx.Done()
			return ctx.Err()
		}},
		Reconcile: func(context.Context, loop.Key) (time.Duration, error) { close(done); return 0, nil },
	})
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it was not started again")
	}
}
