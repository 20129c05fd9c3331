// Package loop is the one shape that all controllers have: sources of keys, a
// queue with rate-limited retries, and a reconcile function per key.
package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	goruntime "runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"

	"orch/server/registry"
)

// Key names the object that a controller reconciles.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// KeyOf is the key of an object.
func KeyOf(obj registry.Object) Key { return Key{obj.GetNamespace(), obj.GetName()} }

// Controller is one reconciliation loop. Reconcile is level-triggered: it reads
// what is so now, plans, and applies the plan; a second call plans nothing.
type Controller struct {
	Name    string
	Workers int // reconciles of different keys at once; 0 means 1
	Sources []Source
	// Reconcile handles one key. A positive duration asks for another call after
	// that time; an error asks for one after a growing delay.
	Reconcile func(ctx context.Context, key Key) (again time.Duration, err error)
	// Start, if set, runs once before the sources, with the queue's Add.
	Start func(ctx context.Context, enqueue func(Key, time.Duration)) error
}

// Source turns changes into keys to reconcile until ctx ends.
type Source func(ctx context.Context, enqueue func(Key)) error

// Changes is the source that maps each change of a T to keys. old is the zero
// T for objects not seen before; deleted tells that obj is its last state.
func Changes[T registry.Object](r *registry.Registry, keys func(old, obj T, deleted bool) []Key) Source {
	return func(ctx context.Context, enqueue func(Key)) error {
		return registry.Of[T](r).Watch(ctx, func(old, obj T, deleted bool) {
			for _, k := range keys(old, obj, deleted) {
				enqueue(k)
			}
		}, nil)
	}
}

// Each is the source of the controller's own kind: every change of a T
// enqueues the T itself.
func Each[T registry.Object](r *registry.Registry) Source {
	return Changes(r, func(_, obj T, _ bool) []Key { return []Key{KeyOf(obj)} })
}

// Run runs controllers until ctx ends. A controller whose source fails is
// started again after a pause; one controller's trouble never stops another.
func Run(ctx context.Context, logger *slog.Logger, controllers ...*Controller) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range controllers {
		log := logger.With("controller", c.Name)
		group.Go(func() error {
			for delay := time.Second; ; delay = min(2*delay, time.Minute) {
				err := c.run(ctx, log)
				if ctx.Err() != nil {
					return nil
				}
				log.Error("controller stopped; starting it again", "err", err, "in", delay)
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(delay):
				}
			}
		})
	}
	return group.Wait()
}

func (c *Controller) run(ctx context.Context, log *slog.Logger) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[Key](5*time.Millisecond, 5*time.Minute))
	group, ctx := errgroup.WithContext(ctx)
	if c.Start != nil {
		group.Go(func() error { return recovered(func() error { return c.Start(ctx, queue.AddAfter) }) })
	}
	for _, source := range c.Sources {
		group.Go(func() error { return recovered(func() error { return source(ctx, queue.Add) }) })
	}
	for range max(1, c.Workers) {
		group.Go(func() error {
			for c.next(ctx, queue, log) {
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		queue.ShutDown()
		return ctx.Err()
	})
	return group.Wait()
}

// next reconciles one key of the queue; false when the queue has shut down.
func (c *Controller) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[Key], log *slog.Logger) bool {
	key, shutdown := queue.Get()
	if shutdown {
		return false
	}
	defer queue.Done(key)
	var again time.Duration
	err := recovered(func() (err error) {
		again, err = c.Reconcile(ctx, key)
		return err
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		level := slog.LevelWarn
		// A conflict only says that someone else was faster: the retry sees it. What
		// is forbidden or invalid is for the object's owner, who is told by an event.
		if apierrors.IsConflict(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
			level = slog.LevelDebug
		}
		log.Log(ctx, level, "reconcile failed", "key", key.String(), "err", err)
		queue.AddRateLimited(key)
	default:
		queue.Forget(key)
		if again > 0 {
			queue.AddAfter(key, again)
		}
	}
	return true
}

type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", p.value, p.stack) }

// recovered turns a panic of fn into an error, so that one bad object cannot
// end the server.
func recovered(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errors.Join(err, &panicError{v, goruntime.Stack()})
		}
	}()
	return fn()
}
