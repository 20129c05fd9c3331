// Package quota keeps what resource quotas say of their use. Admission charges
// what is added; this gives back what has gone, and puts right what both missed.
package quota

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
	"orch/server/registry/admission"
)

// settle is how long a new object waits for a recount, which finds nothing new:
// its charge was written with it. Only a write that was admitted before the quota
// existed has none, so that quotas younger than fresh are recounted at once.
const (
	settle = time.Second
	fresh  = time.Minute
)

// Controller gives the resource quota controller.
func Controller(r *registry.Registry, now func() time.Time) *loop.Controller {
	quotas := registry.Of[*corev1.ResourceQuota](r)
	return &loop.Controller{
		Name:    "resourcequota",
		Workers: 4,
		Sources: []loop.Source{loop.Each[*corev1.ResourceQuota](r)},
		Start: func(ctx context.Context, enqueue func(loop.Key, time.Duration)) error {
			return watchAll(ctx, r, quotas, now, enqueue)
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			_, err := quotas.MutateStatus(ctx, key.Namespace, key.Name, func(q *corev1.ResourceQuota) error {
				used, err := admission.CountQuota(r, q, now())
				if err != nil {
					return fmt.Errorf("recount quota: %w", err)
				}
				if !equality.Semantic.DeepEqual(q.Status.Hard, q.Spec.Hard) || !equality.Semantic.DeepEqual(q.Status.Used, used) {
					q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.DeepCopy().Hard, Used: used}
				}
				return nil
			})
			return 0, children.IgnoreNotFound(err)
		},
	}
}

// watchAll follows all that quotas may count, from the first quota on.
func watchAll(ctx context.Context, r *registry.Registry, quotas registry.Typed[*corev1.ResourceQuota], now func() time.Time,
	enqueue func(loop.Key, time.Duration),
) error {
	if err := firstQuota(ctx, quotas); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, res := range r.Resources() {
		if !res.Namespaced || res.Stored != nil || res.Evaluate != nil || res.Verbs != nil && !slices.Contains(res.Verbs, "watch") ||
			res.Group == "" && (res.Plural == "events" || res.Plural == "resourcequotas") {
			continue
		}
		group.Go(func() error {
			return r.Each(ctx, res, func(old, obj registry.Object, deleted bool) {
				delay := time.Duration(0)
				switch {
				case deleted:
				case old == nil:
					delay = settle
				case !usageChanged(old, obj):
					return
				}
				for _, q := range quotas.List(obj.GetNamespace(), nil) {
					wait := delay
					if now().Sub(q.CreationTimestamp.Time) < fresh {
						wait = 0
					}
					enqueue(loop.KeyOf(q), wait)
				}
			}, nil)
		})
	}
	return group.Wait()
}

// firstQuota waits until there is one.
func firstQuota(ctx context.Context, quotas registry.Typed[*corev1.ResourceQuota]) error {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	found := false
	err := quotas.Watch(waiting, func(_, _ *corev1.ResourceQuota, _ bool) { found = true; stop() }, nil)
	if found {
		return nil
	}
	return err
}

// usageChanged tells whether an update may have freed or taken something.
func usageChanged(old, obj registry.Object) bool {
	switch now := obj.(type) {
	case *corev1.Pod:
		was := old.(*corev1.Pod)
		// A pod beyond its grace period is free, which only a clock tells.
		return was.Status.Phase != now.Status.Phase || now.DeletionTimestamp != nil ||
			was.Generation != now.Generation && !equality.Semantic.DeepEqual(was.Spec.Containers, now.Spec.Containers)
	case *corev1.Service:
		was := old.(*corev1.Service)
		return was.Spec.Type != now.Spec.Type || len(was.Spec.Ports) != len(now.Spec.Ports)
	case *corev1.PersistentVolumeClaim:
		was := old.(*corev1.PersistentVolumeClaim)
		return !equality.Semantic.DeepEqual(was.Spec, now.Spec) || !equality.Semantic.DeepEqual(was.Status.AllocatedResources, now.Status.AllocatedResources)
	}
	return false
}
