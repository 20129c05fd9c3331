package garbage

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"orch/server/registry"
)

// Collector deletes dependents as owner references ask for.
type Collector struct {
	registry *registry.Registry
	log      *slog.Logger
	events   record.EventRecorder
	graph    *graph
	queue    workqueue.TypedRateLimitingInterface[object]

	mu     sync.Mutex
	byUID  map[types.UID]object // owners that are waiting for their dependents
	byKind map[schema.GroupKind]*registry.Resource

	placesMu sync.Mutex
	places   map[types.UID]string // the namespace of each object, to tell who owns across namespaces
}

// New makes a collector that knows nothing yet.
func New(r *registry.Registry, log *slog.Logger, events record.EventRecorder) *Collector {
	c := &Collector{
		registry: r, log: log.With("controller", "garbagecollector"), events: events, graph: newGraph(),
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[object](5*time.Millisecond, time.Minute)),
		byUID:  map[types.UID]object{},
		byKind: map[schema.GroupKind]*registry.Resource{},
		places: map[types.UID]string{},
	}
	for _, res := range r.Resources() {
		if res.Stored == nil && res.Evaluate == nil {
			c.byKind[schema.GroupKind{Group: res.Group, Kind: res.Kind}] = res
		}
	}
	return c
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, res := range c.byKind {
		if res.Verbs != nil && !slices.Contains(res.Verbs, "watch") {
			continue
		}
		group.Go(func() error {
			return c.registry.Each(ctx, res, func(old, obj registry.Object, deleted bool) { c.observe(res, old, obj, deleted) }, nil)
		})
	}
	for range 8 {
		group.Go(func() error {
			for c.next(ctx) {
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		c.queue.ShutDown()
		return ctx.Err()
	})
	return group.Wait()
}

// observe updates the graph and queues what the change may concern.
func (c *Collector) observe(res *registry.Resource, old, obj registry.Object, deleted bool) {
	o := objectOf(res, obj)
	c.place(o, deleted)
	if deleted {
		for _, owner := range c.graph.remove(o.uid) {
			c.wakeOwner(owner)
		}
		for _, dependent := range c.graph.dependentsOf(o.uid) {
			c.queue.Add(dependent)
		}
		c.mu.Lock()
		delete(c.byUID, o.uid)
		c.mu.Unlock()
		return
	}
	if old != nil && old.GetUID() == o.uid && equality.Semantic.DeepEqual(old.GetOwnerReferences(), obj.GetOwnerReferences()) &&
		old.GetDeletionTimestamp().IsZero() == obj.GetDeletionTimestamp().IsZero() && slices.Equal(old.GetFinalizers(), obj.GetFinalizers()) {
		return
	}
	for _, owner := range c.graph.set(o, obj.GetOwnerReferences()) {
		c.wakeOwner(owner) // it may wait for o no longer
	}
	if obj.GetDeletionTimestamp() != nil && (hasFinalizer(obj, metav1.FinalizerDeleteDependents) || hasFinalizer(obj, metav1.FinalizerOrphanDependents)) {
		c.mu.Lock()
		c.byUID[o.uid] = o
		c.mu.Unlock()
		c.queue.Add(o)
		return
	}
	if len(obj.GetOwnerReferences()) > 0 {
		c.queue.Add(o)
	}
}

// place remembers where an object is. Events own nothing, and are many.
func (c *Collector) place(o object, deleted bool) {
	if o.resource.Kind == "Event" {
		return
	}
	c.placesMu.Lock()
	defer c.placesMu.Unlock()
	if deleted {
		delete(c.places, o.uid)
	} else {
		c.places[o.uid] = o.namespace
	}
}

// tellForeignOwner makes an event of an owner that is there, but in another
// namespace, where it counts as none: else the object would be deleted, or kept
// for ever, without a word.
func (c *Collector) tellForeignOwner(o object, ref metav1.OwnerReference) {
	c.placesMu.Lock()
	namespace := c.places[ref.UID]
	c.placesMu.Unlock()
	if namespace == "" || namespace == o.namespace {
		return
	}
	apiVersion, kind := o.resource.GVK().ToAPIVersionAndKind()
	about := &corev1.ObjectReference{APIVersion: apiVersion, Kind: kind, Namespace: o.namespace, Name: o.name, UID: o.uid}
	c.events.Eventf(about, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", "ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q",
		ref.APIVersion, ref.Kind, o.namespace, ref.Name, ref.UID, o.namespace)
}

// wakeOwner queues an owner that waits for its dependents to go.
func (c *Collector) wakeOwner(uid types.UID) {
	c.mu.Lock()
	o, ok := c.byUID[uid]
	c.mu.Unlock()
	if ok {
		c.queue.Add(o)
	}
}

func hasFinalizer(obj registry.Object, name string) bool {
	return slices.Contains(obj.GetFinalizers(), name)
}

func (c *Collector) next(ctx context.Context) bool {
	o, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(o)
	if err := c.process(ctx, o); err != nil && ctx.Err() == nil {
		if !apierrors.IsConflict(err) {
			c.log.Warn("garbage collection failed", "resource", o.resource.Plural, "namespace", o.namespace, "name", o.name, "err", err)
		}
		c.queue.AddRateLimited(o)
		return true
	}
	c.queue.Forget(o)
	return true
}

// process does for one object what its owners and finalizers ask for.
func (c *Collector) process(ctx context.Context, o object) error {
	obj, err := c.get(ctx, o.resource, o.namespace, o.name)
	if err != nil || obj == nil || obj.GetUID() != o.uid {
		return err
	}
	if obj.GetDeletionTimestamp() != nil {
		switch {
		case hasFinalizer(obj, metav1.FinalizerOrphanDependents):
			return c.orphan(ctx, o)
		case hasFinalizer(obj, metav1.FinalizerDeleteDependents):
			return c.deleteDependents(ctx, o)
		}
		return nil
	}
	return c.checkOwners(ctx, o, obj)
}

// get reads from memory; nil when absent.
func (c *Collector) get(ctx context.Context, res *registry.Resource, namespace, name string) (registry.Object, error) {
	obj, err := c.registry.Get(ctx, res, namespace, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return obj, err
}

// orphan takes the owner out of its dependents' references and then lets it go.
// One that was overlooked would be deleted for good, so it searches the store
// and does not trust the graph to have heard of the latest.
func (c *Collector) orphan(ctx context.Context, owner object) error {
	for _, res := range c.byKind {
		if owner.namespace != "" && !res.Namespaced {
			continue
		}
		list, err := c.registry.List(ctx, res, registry.Selection{Namespace: owner.namespace}, &metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for _, obj := range list.Items {
			if !slices.ContainsFunc(obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.uid }) {
				continue
			}
			if err := c.dropOwners(ctx, objectOf(res, obj), map[types.UID]bool{owner.uid: true}); err != nil {
				return err
			}
		}
	}
	return c.dropFinalizer(ctx, owner, metav1.FinalizerOrphanDependents)
}

func objectOf(res *registry.Resource, obj registry.Object) object {
	return object{res, obj.GetNamespace(), obj.GetName(), obj.GetUID()}
}

// deleteDependents deletes what blocks a foreground deletion, and lets the
// owner go when nothing blocks it any more.
func (c *Collector) deleteDependents(ctx context.Context, owner object) error {
	blocked := false
	for _, d := range c.graph.dependentsOf(owner.uid) {
		obj, err := c.get(ctx, d.resource, d.namespace, d.name)
		if err != nil {
			return err
		}
		if obj == nil || obj.GetUID() != d.uid {
			continue
		}
		if blocks(obj, owner.uid) {
			blocked = true
		}
		// Those that are on their way need nothing more: each that goes wakes the
		// owner, and looking at all others again would cost their square.
		if obj.GetDeletionTimestamp() == nil {
			c.queue.Add(d)
		}
	}
	if blocked {
		return nil
	}
	return c.dropFinalizer(ctx, owner, metav1.FinalizerDeleteDependents)
}

func blocks(obj registry.Object, owner types.UID) bool {
	return slices.ContainsFunc(obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
		return r.UID == owner && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
	})
}

// checkOwners deletes an object that has lost all its owners, and drops
// references to lost ones where another owner remains.
func (c *Collector) checkOwners(ctx context.Context, o object, obj registry.Object) error {
	refs := obj.GetOwnerReferences()
	if len(refs) == 0 {
		return nil
	}
	solid, unknown, waiting := 0, 0, 0
	lost := map[types.UID]bool{}
	for _, ref := range refs {
		owner, known, err := c.owner(ctx, o.namespace, ref)
		switch {
		case err != nil:
			return err
		case !known:
			c.tellForeignOwner(o, ref)
			solid++ // a kind that is not served: better to keep than to lose
			unknown++
		case owner == nil:
			c.tellForeignOwner(o, ref)
			lost[ref.UID] = true
		case owner.GetDeletionTimestamp() != nil && hasFinalizer(owner, metav1.FinalizerDeleteDependents):
			waiting++
			lost[ref.UID] = true
		default:
			solid++
		}
	}
	switch {
	case unknown > 0:
		return nil // nothing is certain
	case solid > 0 && len(lost) > 0:
		return c.dropOwners(ctx, o, lost)
	case solid > 0:
		return nil
	}
	policy := metav1.DeletePropagationBackground
	switch dependents := c.graph.dependentsOf(o.uid); {
	case waiting > 0 && len(dependents) > 0:
		// The owner waits for o, and so should o for its own.
		policy = metav1.DeletePropagationForeground
		if broken, err := c.breakCircle(ctx, o, obj, dependents); broken || err != nil {
			return err // the change brings the next look
		}
	case hasFinalizer(obj, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case hasFinalizer(obj, metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	version := obj.GetResourceVersion()
	_, _, err := c.registry.Delete(ctx, o.resource, o.namespace, o.name, &metav1.DeleteOptions{
		PropagationPolicy: &policy,
		Preconditions:     &metav1.Preconditions{UID: &o.uid, ResourceVersion: &version},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// owner finds the object that ref names; nil when it is gone (or another one
// has its name), known false when its kind is not served.
func (c *Collector) owner(ctx context.Context, namespace string, ref metav1.OwnerReference) (owner registry.Object, known bool, err error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, false, nil
	}
	res := c.byKind[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	if res == nil {
		return nil, false, nil
	}
	if !res.Namespaced {
		namespace = ""
	} else if namespace == "" {
		return nil, false, nil // not allowed, and no reason to delete a cluster-wide object
	}
	owner, err = c.get(ctx, res, namespace, ref.Name)
	if err != nil || owner == nil || owner.GetUID() != ref.UID {
		return nil, true, err
	}
	return owner, true, nil
}

// breakCircle keeps o from blocking its owners when one of its dependents waits
// for its own dependents: they could be waiting for each other. It tells whether
// that changed anything.
func (c *Collector) breakCircle(ctx context.Context, o object, obj registry.Object, dependents []object) (bool, error) {
	blocking := func(r metav1.OwnerReference) bool { return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion }
	if !slices.ContainsFunc(obj.GetOwnerReferences(), blocking) {
		return false, nil
	}
	for _, d := range dependents {
		dependent, err := c.get(ctx, d.resource, d.namespace, d.name)
		if err != nil {
			return false, err
		}
		if dependent == nil || dependent.GetDeletionTimestamp() == nil || !hasFinalizer(dependent, metav1.FinalizerDeleteDependents) {
			continue
		}
		return true, c.mutate(ctx, o, func(obj registry.Object) {
			refs := slices.Clone(obj.GetOwnerReferences())
			for i := range refs {
				if blocking(refs[i]) {
					refs[i].BlockOwnerDeletion = new(bool)
				}
			}
			obj.SetOwnerReferences(refs)
		})
	}
	return false, nil
}

func (c *Collector) dropOwners(ctx context.Context, o object, lost map[types.UID]bool) error {
	return c.mutate(ctx, o, func(obj registry.Object) {
		obj.SetOwnerReferences(slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(r metav1.OwnerReference) bool { return lost[r.UID] }))
	})
}

func (c *Collector) dropFinalizer(ctx context.Context, o object, finalizer string) error {
	return c.mutate(ctx, o, func(obj registry.Object) {
		obj.SetFinalizers(slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == finalizer }))
	})
}

func (c *Collector) mutate(ctx context.Context, o object, change func(registry.Object)) error {
	_, err := c.registry.Mutate(ctx, o.resource, "", o.namespace, o.name, func(obj registry.Object) error {
		if obj.GetUID() == o.uid {
			change(obj)
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
