// Package volumes looks after claims and persistent volumes.
package volumes

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Finalizers that keep what is in use from going.
const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// ClaimProtection lets a deleted claim go when no pod uses it any more.
func ClaimProtection(r *registry.Registry) *loop.Controller {
	claims, pods := registry.Of[*corev1.PersistentVolumeClaim](r), registry.Of[*corev1.Pod](r)
	return &loop.Controller{
		Name:    "pvc-protection",
		Workers: 2,
		Sources: []loop.Source{
			loop.Each[*corev1.PersistentVolumeClaim](r),
			loop.Changes(r, func(_, p *corev1.Pod, deleted bool) (keys []loop.Key) {
				if !deleted && !shutDown(p) {
					return nil
				}
				for i := range p.Spec.Volumes {
					if name := claimOf(p, &p.Spec.Volumes[i]); name != "" {
						keys = append(keys, loop.Key{Namespace: p.Namespace, Name: name})
					}
				}
				return keys
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			claim, err := claims.Get(key.Namespace, key.Name)
			if err != nil || !protects(claim, claimFinalizer, func() bool { return inUse(claim, pods.List(key.Namespace, nil)) }) {
				return 0, nil
			}
			return 0, protect(ctx, claims, claim, claimFinalizer)
		},
	}
}

// VolumeProtection lets a deleted volume go when it is not bound any more.
func VolumeProtection(r *registry.Registry) *loop.Controller {
	volumes := registry.Of[*corev1.PersistentVolume](r)
	return &loop.Controller{
		Name:    "pv-protection",
		Sources: []loop.Source{loop.Each[*corev1.PersistentVolume](r)},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			v, err := volumes.Get("", key.Name)
			if err != nil || !protects(v, volumeFinalizer, func() bool { return v.Status.Phase == corev1.VolumeBound }) {
				return 0, nil
			}
			return 0, protect(ctx, volumes, v, volumeFinalizer)
		},
	}
}

// protects tells whether the finalizer is to be added or taken off.
func protects(obj registry.Object, finalizer string, used func() bool) bool {
	has := slices.Contains(obj.GetFinalizers(), finalizer)
	if obj.GetDeletionTimestamp() == nil {
		return !has
	}
	return has && !used()
}

// protect adds the finalizer, or takes it off what is being deleted.
func protect[T registry.Object](ctx context.Context, door registry.Typed[T], obj T, finalizer string) error {
	_, err := door.Mutate(ctx, obj.GetNamespace(), obj.GetName(), func(now T) error {
		switch {
		case now.GetUID() != obj.GetUID():
		case now.GetDeletionTimestamp() != nil:
			children.DropFinalizer(now, finalizer)
		case !slices.Contains(now.GetFinalizers(), finalizer):
			now.SetFinalizers(append(slices.Clone(now.GetFinalizers()), finalizer))
		}
		return nil
	})
	return children.IgnoreNotFound(err)
}

// inUse tells whether a pod on a node mounts the claim. One that has no node
// will not get any while the claim is being deleted.
func inUse(claim *corev1.PersistentVolumeClaim, pods []*corev1.Pod) bool {
	return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
		return p.Spec.NodeName != "" && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			if v.Ephemeral != nil && (shutDown(p) || !metav1.IsControlledBy(claim, p)) {
				return false
			}
			return claimOf(p, &v) == claim.Name
		})
	})
}

// shutDown tells whether a pod's containers are gone for good.
func shutDown(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0
}

func claimOf(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}
