// Package objects gives the secrets and config maps that this node's pods use.
// Each one is watched alone, as a node may read only what its pods refer to,
// and only while something uses it.
package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// Kind of an object.
type Kind string

// The kinds that volumes and environments refer to.
const (
	ConfigMap Kind = "configmap"
	Secret    Kind = "secret"
)

// Ref names an object.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

func (r Ref) String() string { return fmt.Sprintf("%s %s/%s", r.Kind, r.Namespace, r.Name) }

// Cache follows objects by reference.
type Cache struct {
	client kubernetes.Interface
	log    *slog.Logger
	// changed is told of every change of an object in use, its first state
	// excepted. It must return quickly.
	changed func(Ref)
	wake    chan struct{} // holds one value while waiting has entries

	mu      sync.Mutex
	entries map[Ref]*entry // guarded by mu
	waiting []*entry       // to be followed by Run; guarded by mu
}

// entry is one followed object. Cache.mu guards what changes.
type entry struct {
	ref    Ref
	users  int
	ended  chan struct{} // closed with the last Release
	known  chan struct{} // closed once object or err is set
	object runtime.Object
	err    error // why there is no object
	fixed  bool  // the object is immutable, and not followed any more
}

// New makes a cache; changed may be nil.
func New(client kubernetes.Interface, log *slog.Logger, changed func(Ref)) *Cache {
	return &Cache{
		client: client, log: log.With("component", "objects"), changed: changed,
		wake: make(chan struct{}, 1), entries: map[Ref]*entry{},
	}
}

// Run lets the cache follow objects until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		waiting := c.waiting
		c.waiting = nil
		c.mu.Unlock()
		for _, e := range waiting {
			following.Go(func() { c.run(ctx, e) })
		}
	}
}

// Use begins to follow an object, until as many Releases.
func (c *Cache) Use(ref Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[ref]
	switch {
	case e == nil:
		e = &entry{ref: ref, ended: make(chan struct{}), known: make(chan struct{})}
		c.entries[ref] = e
		c.follow(e)
	case e.fixed: // it may have been deleted and made anew since
		e.fixed, e.known = false, make(chan struct{})
		c.follow(e)
	}
	e.users++
}

// follow hands an entry to Run; c.mu is held.
func (c *Cache) follow(e *entry) {
	c.waiting = append(c.waiting, e)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Release ends a Use.
func (c *Cache) Release(ref Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[ref]
	if e == nil {
		return
	}
	if e.users--; e.users == 0 {
		close(e.ended)
		delete(c.entries, ref)
	}
}

// ConfigMap gives a config map, which is read anew when nobody follows it.
func (c *Cache) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	obj, err := c.get(ctx, Ref{ConfigMap, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.ConfigMap), nil
}

// Secret gives a secret.
func (c *Cache) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	obj, err := c.get(ctx, Ref{Secret, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Secret), nil
}

func (c *Cache) get(ctx context.Context, ref Ref) (runtime.Object, error) {
	c.mu.Lock()
	e := c.entries[ref]
	var known chan struct{}
	if e != nil {
		known = e.known
	}
	c.mu.Unlock()
	if e == nil {
		return c.fetch(ctx, ref)
	}
	select {
	case <-known:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	obj, err := e.object, e.err
	c.mu.Unlock()
	if err != nil {
		// What was absent may have come a moment ago: a pod must not wait for the
		// watch to tell.
		return c.fetch(ctx, ref)
	}
	return obj, nil
}

func (c *Cache) fetch(ctx context.Context, ref Ref) (runtime.Object, error) {
	if ref.Kind == Secret {
		return c.client.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	}
	return c.client.CoreV1().ConfigMaps(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
}

// Delays between attempts to watch.
const (
	firstDelay = 200 * time.Millisecond
	lastDelay  = 30 * time.Second
)

// run follows an object until it is not used any more.
func (c *Cache) run(ctx context.Context, e *entry) {
	delay := firstDelay
	for {
		began := time.Now()
		err := c.watch(ctx, e)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastDelay {
			delay = firstDelay
		}
		c.log.Debug("watch ended; watching again", "object", e.ref.String(), "err", err)
		select {
		case <-e.ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, lastDelay)
	}
}

// watch reads the object and follows it until the stream ends. It gives nil
// when there is nothing to follow any more.
func (c *Cache) watch(ctx context.Context, e *entry) error {
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", e.ref.Name).String()}
	found, version, err := c.list(ctx, e.ref, options)
	if err != nil {
		c.fail(e, err)
		return err
	}
	if c.set(e, found) {
		return nil
	}
	options.ResourceVersion = version
	stream, err := c.open(ctx, e.ref, options)
	if err != nil {
		return err
	}
	defer stream.Stop()
	for {
		select {
		case <-e.ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case event, ok := <-stream.ResultChan():
			if !ok {
				return errors.New("stream ended")
			}
			switch event.Type {
			case watch.Added, watch.Modified:
				if c.set(e, event.Object) {
					return nil
				}
			case watch.Deleted:
				c.set(e, nil)
			case watch.Error:
				return apierrors.FromObject(event.Object)
			}
		}
	}
}

// list reads the one object as a list, which also tells from where to watch
// when it is absent.
func (c *Cache) list(ctx context.Context, ref Ref, options metav1.ListOptions) (found runtime.Object, version string, err error) {
	if ref.Kind == Secret {
		list, err := c.client.CoreV1().Secrets(ref.Namespace).List(ctx, options)
		if err != nil {
			return nil, "", err
		}
		if len(list.Items) > 0 {
			found = &list.Items[0]
		}
		return found, list.ResourceVersion, nil
	}
	list, err := c.client.CoreV1().ConfigMaps(ref.Namespace).List(ctx, options)
	if err != nil {
		return nil, "", err
	}
	if len(list.Items) > 0 {
		found = &list.Items[0]
	}
	return found, list.ResourceVersion, nil
}

func (c *Cache) open(ctx context.Context, ref Ref, options metav1.ListOptions) (watch.Interface, error) {
	if ref.Kind == Secret {
		return c.client.CoreV1().Secrets(ref.Namespace).Watch(ctx, options)
	}
	return c.client.CoreV1().ConfigMaps(ref.Namespace).Watch(ctx, options)
}

// fail lets those who wait fetch the object themselves and see the error.
func (c *Cache) fail(e *entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.object == nil {
		e.err = err
	}
	closeOnce(e.known)
}

// set takes a new state, nil for absent. It tells whether that is the last.
func (c *Cache) set(e *entry, obj runtime.Object) (last bool) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil) // nobody here reads them, and they are large
	}
	c.mu.Lock()
	first := e.object == nil && e.err == nil
	same := sameVersion(e.object, obj)
	e.object, e.err, e.fixed = obj, nil, isImmutable(obj)
	if obj == nil {
		e.err = fmt.Errorf("%s is absent", e.ref)
	}
	closeOnce(e.known)
	last = e.fixed
	c.mu.Unlock()
	if !first && !same && c.changed != nil {
		c.changed(e.ref)
	}
	return last
}

// isImmutable tells of objects that need no watching.
func isImmutable(obj runtime.Object) bool {
	switch o := obj.(type) {
	case *corev1.Secret:
		return o.Immutable != nil && *o.Immutable
	case *corev1.ConfigMap:
		return o.Immutable != nil && *o.Immutable
	}
	return false
}

// closeOnce closes a channel that only holders of the mutex close.
func closeOnce(ch chan struct{}) {
	select {
	case <-ch:
	default:
		close(ch)
	}
}

func sameVersion(a, b runtime.Object) bool {
	x, ok1 := a.(metav1.Object)
	y, ok2 := b.(metav1.Object)
	if !ok1 || !ok2 {
		return !ok1 && !ok2
	}
	return x.GetUID() == y.GetUID() && x.GetResourceVersion() == y.GetResourceVersion()
}
