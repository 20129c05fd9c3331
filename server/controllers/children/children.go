// Package children holds what all controllers of pods share: which pods are
// theirs, how a pod is made from a template, and which one can go first.
package children

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Owner is a controller of pods or of other children, with its selector.
type Owner struct {
	registry.Object
	Kind     schema.GroupVersionKind
	Selector labels.Selector
	Member   func(name string) bool // what else makes a child; nil: nothing
	// Finalizer, if set, is what children carry; adopted ones get it and released
	// ones lose it.
	Finalizer string
}

func (o Owner) matches(child registry.Object) bool {
	return o.Selector.Matches(labels.Set(child.GetLabels())) && (o.Member == nil || o.Member(child.GetName()))
}

// Claim is what ownership asks for: the children that are the owner's after
// orphans that match were adopted and those that match no more were released.
type Claim[T registry.Object] struct {
	Mine           []T
	Adopt, Release []T
}

// ClaimAll sorts candidates, which may be all objects of the namespace.
func ClaimAll[T registry.Object](owner Owner, candidates []T) Claim[T] {
	var c Claim[T]
	for _, child := range candidates {
		ref := metav1.GetControllerOfNoCopy(child)
		matches := owner.matches(child)
		switch {
		case ref != nil && ref.UID == owner.GetUID():
			if matches {
				c.Mine = append(c.Mine, child)
			} else if owner.GetDeletionTimestamp() == nil {
				c.Release = append(c.Release, child)
			}
		case ref == nil && matches && child.GetDeletionTimestamp() == nil && owner.GetDeletionTimestamp() == nil:
			c.Adopt = append(c.Adopt, child)
		}
	}
	return c
}

// Apply adopts and releases, and gives all children that are the owner's then.
func Apply[T registry.Object](ctx context.Context, owner Owner, door registry.Typed[T], c Claim[T]) ([]T, error) {
	mine := c.Mine
	for _, child := range c.Release {
		_, err := door.Mutate(ctx, child.GetNamespace(), child.GetName(), func(obj T) error {
			obj.SetOwnerReferences(slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(r metav1.OwnerReference) bool {
				return r.UID == owner.GetUID()
			}))
			if owner.Finalizer != "" {
				DropFinalizer(obj, owner.Finalizer)
			}
			return nil
		})
		if IgnoreNotFound(err) != nil {
			return nil, err
		}
	}
	for _, child := range c.Adopt {
		adopted, err := door.Mutate(ctx, child.GetNamespace(), child.GetName(), func(obj T) error {
			if obj.GetUID() == child.GetUID() && metav1.GetControllerOfNoCopy(obj) == nil {
				obj.SetOwnerReferences(append(slices.Clone(obj.GetOwnerReferences()), *metav1.NewControllerRef(owner.Object, owner.Kind)))
				if f := owner.Finalizer; f != "" && !slices.Contains(obj.GetFinalizers(), f) {
					obj.SetFinalizers(append(slices.Clone(obj.GetFinalizers()), f))
				}
			}
			return nil
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if ref := metav1.GetControllerOfNoCopy(adopted); ref != nil && ref.UID == owner.GetUID() {
			mine = append(mine, adopted)
		}
	}
	return mine, nil
}

// DropFinalizer takes a finalizer off obj, which must be private.
func DropFinalizer(obj registry.Object, finalizer string) {
	obj.SetFinalizers(slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == finalizer }))
}

// IgnoreNotFound forgives that an object is gone.
func IgnoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// OwnerKeys gives the source of keys of owners of one kind from the changes of
// their children: the present and the former controller and, for orphans, the
// owners for which match gives keys.
func OwnerKeys[T registry.Object](r *registry.Registry, kind string, match func(child T) []loop.Key) loop.Source {
	return loop.Changes(r, func(old, child T, _ bool) []loop.Key {
		var keys []loop.Key
		add := func(ref *metav1.OwnerReference) {
			if ref != nil && ref.Kind == kind {
				if k := (loop.Key{Namespace: child.GetNamespace(), Name: ref.Name}); !slices.Contains(keys, k) {
					keys = append(keys, k)
				}
			}
		}
		ref := metav1.GetControllerOfNoCopy(child)
		add(ref)
		var none T
		if registry.Object(old) != registry.Object(none) {
			add(metav1.GetControllerOfNoCopy(old))
		}
		if ref == nil && match != nil {
			keys = append(keys, match(child)...)
		}
		return keys
	})
}

// FromTemplate makes a pod of owner's template.
func FromTemplate(template *corev1.PodTemplateSpec, owner registry.Object, kind schema.GroupVersionKind) *corev1.Pod {
	t := template.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), GenerateName: podPrefix(owner.GetName()),
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec: t.Spec,
	}
}

// podPrefix leaves the dash out when the name would become too long with it.
func podPrefix(name string) string {
	if prefix := name + "-"; len(prefix) <= 253 {
		return prefix
	}
	return name
}

// Active tells whether a pod counts: it neither has ended nor is ending.
func Active(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && p.DeletionTimestamp == nil
}

// Ready is the pod's condition of that name.
func Ready(p *corev1.Pod) bool { return readyCondition(p) != nil }

func readyCondition(p *corev1.Pod) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// Available tells whether a pod has been ready for minReadySeconds. When it
// has not, but is ready, wait is how much is missing.
func Available(p *corev1.Pod, minReadySeconds int32, now time.Time) (available bool, wait time.Duration) {
	c := readyCondition(p)
	if c == nil {
		return false, 0
	}
	if minReadySeconds == 0 {
		return true, 0
	}
	wait = c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
	return wait <= 0, max(wait, 0)
}

// Soonest is the shorter of two waits, where 0 means none.
func Soonest(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
