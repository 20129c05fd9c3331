package scheduler

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"orch/server/registry"
)

// RegistryDoor is the Door of a scheduler that runs inside the server.
type RegistryDoor struct {
	registry *registry.Registry
	events   record.EventRecorder
	pods     registry.Typed[*corev1.Pod]
}

var _ Door = (*RegistryDoor)(nil)

// NewRegistryDoor opens the door to r.
func NewRegistryDoor(r *registry.Registry, events record.EventRecorder) *RegistryDoor {
	return &RegistryDoor{registry: r, events: events, pods: registry.Of[*corev1.Pod](r)}
}

// Watch reports nodes, pods and changes of claims and namespaces until ctx ends.
func (d *RegistryDoor) Watch(ctx context.Context, nodes func(*corev1.Node, bool), pods func(*corev1.Pod, bool), claims, namespaces func()) error {
	group, ctx := errgroup.WithContext(ctx)
	synced := make(chan struct{})
	group.Go(func() error {
		return registry.Of[*corev1.Node](d.registry).Watch(ctx, func(_, n *corev1.Node, deleted bool) { nodes(n, deleted) },
			func() { close(synced) })
	})
	group.Go(func() error {
		// Pods placed on nodes that are not known yet would not be counted.
		select {
		case <-synced:
		case <-ctx.Done():
			return ctx.Err()
		}
		return d.pods.Watch(ctx, func(_, p *corev1.Pod, deleted bool) { pods(p, deleted) }, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.PersistentVolumeClaim](d.registry).Watch(ctx, func(_, _ *corev1.PersistentVolumeClaim, _ bool) { claims() }, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.PersistentVolume](d.registry).Watch(ctx, func(_, _ *corev1.PersistentVolume, _ bool) { claims() }, nil)
	})
	group.Go(func() error {
		return registry.Of[*storagev1.StorageClass](d.registry).Watch(ctx, func(_, _ *storagev1.StorageClass, _ bool) { claims() }, nil)
	})
	group.Go(func() error {
		return registry.Of[*resourcev1.ResourceClaim](d.registry).Watch(ctx, func(_, _ *resourcev1.ResourceClaim, _ bool) { claims() }, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.Namespace](d.registry).Watch(ctx, func(old, now *corev1.Namespace, _ bool) {
			if old == nil || now == nil || !sameLabels(old.Labels, now.Labels) {
				namespaces()
			}
		}, nil)
	})
	return group.Wait()
}

// NamespaceLabels gives the labels of a namespace.
func (d *RegistryDoor) NamespaceLabels(namespace string) labels.Set {
	ns, err := registry.Of[*corev1.Namespace](d.registry).Get("", namespace)
	if err != nil {
		return nil
	}
	return ns.Labels
}

// Budgets gives all disruption budgets.
func (d *RegistryDoor) Budgets() []*policyv1.PodDisruptionBudget {
	return registry.Of[*policyv1.PodDisruptionBudget](d.registry).List("", nil)
}

// SpreadSelector selects the pods of p's services and of its controller.
func (d *RegistryDoor) SpreadSelector(p *corev1.Pod) labels.Selector {
	set := labels.Set{}
	for _, service := range registry.Of[*corev1.Service](d.registry).List(p.Namespace, nil) {
		if len(service.Spec.Selector) > 0 && labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(p.Labels)) {
			set = labels.Merge(set, service.Spec.Selector)
		}
	}
	selector := labels.Everything()
	if len(set) > 0 {
		selector = labels.SelectorFromSet(set)
	}
	if owner := d.controllerSelector(p); owner != nil {
		requirements, _ := owner.Requirements()
		selector = selector.Add(requirements...)
	}
	if selector.Empty() {
		return nil
	}
	return selector
}

func (d *RegistryDoor) controllerSelector(p *corev1.Pod) labels.Selector {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return nil
	}
	var selector *metav1.LabelSelector
	switch owner.Kind {
	case "ReplicaSet":
		if rs, err := registry.Of[*appsv1.ReplicaSet](d.registry).Get(p.Namespace, owner.Name); err == nil {
			selector = rs.Spec.Selector
		}
	case "StatefulSet":
		if set, err := registry.Of[*appsv1.StatefulSet](d.registry).Get(p.Namespace, owner.Name); err == nil {
			selector = set.Spec.Selector
		}
	case "ReplicationController":
		if rc, err := registry.Of[*corev1.ReplicationController](d.registry).Get(p.Namespace, owner.Name); err == nil {
			selector = metav1.SetAsLabelSelector(rc.Spec.Selector)
		}
	}
	if selector == nil {
		return nil
	}
	return compile(selector)
}

// Bind places the pod.
func (d *RegistryDoor) Bind(ctx context.Context, p *corev1.Pod, node string) error {
	if err := d.selectNode(ctx, p, node); err != nil {
		return err
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	if _, err := d.registry.Act(ctx, d.pods.Resource(), "binding", p.Namespace, p.Name, binding, nil); err != nil {
		return err
	}
	d.events.Eventf(p, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", p.Namespace, p.Name, node)
	return nil
}

// Unschedulable sets the pod's condition and records an event.
func (d *RegistryDoor) Unschedulable(ctx context.Context, p *corev1.Pod, message, nominated string) error {
	d.events.Event(p, corev1.EventTypeWarning, "FailedScheduling", message)
	_, err := d.pods.MutateStatus(ctx, p.Namespace, p.Name, func(now *corev1.Pod) error {
		if now.UID != p.UID || now.Spec.NodeName != "" {
			return nil
		}
		now.Status.NominatedNodeName = nominated
		setCondition(&now.Status, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, ObservedGeneration: now.Generation,
			Reason: corev1.PodReasonUnschedulable, Message: message,
		})
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Preempt deletes a victim in favour of by.
func (d *RegistryDoor) Preempt(ctx context.Context, victim, by *corev1.Pod, node string) error {
	_, err := d.pods.MutateStatus(ctx, victim.Namespace, victim.Name, func(now *corev1.Pod) error {
		setCondition(&now.Status, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: now.Generation,
			Reason:  corev1.PodReasonPreemptionByScheduler,
			Message: Name + ": preempting to accommodate a higher priority pod",
		})
		return nil
	})
	if err == nil {
		uid := types.UID(victim.UID)
		err = d.pods.Delete(ctx, victim.Namespace, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	d.events.Eventf(victim, corev1.EventTypeNormal, "Preempted", "Preempted by pod %s on node %s", by.UID, node)
	return nil
}

// setCondition replaces the condition of the same type; the transition time
// changes only with the status.
func setCondition(status *corev1.PodStatus, c corev1.PodCondition) {
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		c.LastTransitionTime = old.LastTransitionTime
		if old.Status != c.Status {
			c.LastTransitionTime = metav1.NewTime(time.Now()).Rfc3339Copy()
		}
		c.LastProbeTime = old.LastProbeTime
		*old = c
		return
	}
	c.LastTransitionTime = metav1.NewTime(time.Now()).Rfc3339Copy()
	status.Conditions = append(status.Conditions, c)
}
