package volumes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Ephemeral makes the claims of pods' generic ephemeral volumes. A claim belongs
// to its pod and goes with it.
func Ephemeral(r *registry.Registry, events record.EventRecorder) *loop.Controller {
	claims, pods := registry.Of[*corev1.PersistentVolumeClaim](r), registry.Of[*corev1.Pod](r)
	return &loop.Controller{
		Name: "ephemeral-volume",
		Sources: []loop.Source{
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key {
				if deleted || old != nil || !hasEphemeral(p) {
					return nil
				}
				return []loop.Key{loop.KeyOf(p)}
			}),
			// A claim in the way may have gone, or one of ours by mistake.
			loop.Changes(r, func(_, claim *corev1.PersistentVolumeClaim, deleted bool) (keys []loop.Key) {
				if !deleted {
					return nil
				}
				for _, p := range pods.List(claim.Namespace, nil) {
					for i := range p.Spec.Volumes {
						if v := &p.Spec.Volumes[i]; v.Ephemeral != nil && claimOf(p, v) == claim.Name {
							keys = append(keys, loop.KeyOf(p))
						}
					}
				}
				return keys
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			if err != nil || p.DeletionTimestamp != nil {
				return 0, nil
			}
			for i := range p.Spec.Volumes {
				v := &p.Spec.Volumes[i]
				if v.Ephemeral == nil {
					continue
				}
				if err := ensureClaim(ctx, claims, p, v); err != nil {
					events.Eventf(p, corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", v.Name, err)
					return 0, err
				}
			}
			return 0, nil
		},
	}
}

func hasEphemeral(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Ephemeral != nil {
			return true
		}
	}
	return false
}

func ensureClaim(ctx context.Context, claims registry.Typed[*corev1.PersistentVolumeClaim], p *corev1.Pod, v *corev1.Volume) error {
	name := claimOf(p, v)
	claim, err := claims.Get(p.Namespace, name)
	if apierrors.IsNotFound(err) {
		template := v.Ephemeral.VolumeClaimTemplate
		claim, err = claims.Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: p.Namespace, Name: name, Labels: template.Labels, Annotations: template.Annotations,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, corev1.SchemeGroupVersion.WithKind("Pod"))},
			},
			Spec: *template.Spec.DeepCopy(),
		})
		if err != nil {
			return fmt.Errorf("create PVC %s: %w", name, err)
		}
	}
	if err != nil {
		return err
	}
	if !metav1.IsControlledBy(claim, p) {
		return fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, claim.Name, p.Namespace, p.Name)
	}
	return nil
}
