// Package nodes looks after nodes: the pod network each one gets, what their
// silence means for them and their pods, and pods that no node will finish.
package nodes

import (
	"context"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// gracePeriod is how long a node may be silent before it counts as lost: two
// heartbeats missed (kube-controller-manager's --node-monitor-grace-period is
// 50 s; see evictionSeconds in the admission of tolerations).
const gracePeriod = 25 * time.Second

// leaseNamespace holds the nodes' heartbeats.
const leaseNamespace = corev1.NamespaceNodeLease

// Lifecycle marks silent nodes and keeps the taints that mirror their conditions.
func Lifecycle(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &lifecycle{
		nodes: registry.Of[*corev1.Node](r), leases: registry.Of[*coordinationv1.Lease](r), pods: children.NewPods(r, index, events),
		events: events, now: now, since: now(),
	}
	return &loop.Controller{
		Name:    "node-lifecycle",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*corev1.Node](r),
			// A heartbeat needs no look at the node unless it was silent; its own
			// timer finds silence.
			loop.Changes(r, func(_, l *coordinationv1.Lease, deleted bool) []loop.Key {
				if l.Namespace != leaseNamespace || deleted || !c.silent(l.Name) {
					return nil
				}
				return []loop.Key{{Name: l.Name}}
			}),
		},
		Reconcile: c.reconcile,
	}
}

type lifecycle struct {
	nodes  registry.Typed[*corev1.Node]
	leases registry.Typed[*coordinationv1.Lease]
	pods   children.Pods
	events record.EventRecorder
	now    func() time.Time
	since  time.Time // silence from before we looked does not count
}

func (c *lifecycle) silent(name string) bool {
	n, err := c.nodes.Get("", name)
	return err == nil && condition(n, corev1.NodeReady).Status == corev1.ConditionUnknown
}

func condition(n *corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func (c *lifecycle) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	n, err := c.nodes.Get("", key.Name)
	if err != nil || n.DeletionTimestamp != nil {
		return 0, nil
	}
	heard := c.lastHeard(n)
	wait := heard.Add(gracePeriod).Sub(c.now())
	if wait <= 0 {
		if n, err = c.markSilent(ctx, n); err != nil {
			return 0, err
		}
		wait = gracePeriod
	}
	if err := c.setTaints(ctx, n); err != nil {
		return 0, err
	}
	if condition(n, corev1.NodeReady).Status != corev1.ConditionTrue {
		if err := c.markPodsNotReady(ctx, n); err != nil {
			return 0, err
		}
	}
	return wait, nil
}

func (c *lifecycle) lastHeard(n *corev1.Node) time.Time {
	heard := c.since
	if n.CreationTimestamp.After(heard) {
		heard = n.CreationTimestamp.Time
	}
	if l, err := c.leases.Get(leaseNamespace, n.Name); err == nil && l.Spec.RenewTime != nil && l.Spec.RenewTime.After(heard) {
		heard = l.Spec.RenewTime.Time
	}
	if ready := condition(n, corev1.NodeReady); ready.Status != corev1.ConditionUnknown && ready.LastHeartbeatTime.After(heard) {
		heard = ready.LastHeartbeatTime.Time
	}
	return heard
}

// markSilent sets the conditions of a node that was not heard of to Unknown.
func (c *lifecycle) markSilent(ctx context.Context, n *corev1.Node) (*corev1.Node, error) {
	if condition(n, corev1.NodeReady).Status == corev1.ConditionUnknown {
		return n, nil
	}
	now := metav1.NewTime(c.now()).Rfc3339Copy()
	updated, err := c.nodes.MutateStatus(ctx, "", n.Name, func(n *corev1.Node) error {
		for _, kind := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
			setUnknown(n, kind, now)
		}
		return nil
	})
	if err == nil {
		c.events.Eventf(n, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name)
		return updated, nil
	}
	return n, ignoreNotFound(err)
}

func setUnknown(n *corev1.Node, kind corev1.NodeConditionType, now metav1.Time) {
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		if c.Type == kind {
			if c.Status != corev1.ConditionUnknown {
				c.Status, c.LastTransitionTime = corev1.ConditionUnknown, now
				c.Reason, c.Message = "NodeStatusUnknown", "Kubelet stopped posting node status."
			}
			return
		}
	}
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
		Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
		LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: now,
	})
}

// setTaints makes the node's condition taints what Taints says.
func (c *lifecycle) setTaints(ctx context.Context, n *corev1.Node) error {
	if _, changed := Taints(n, c.now()); !changed {
		return nil
	}
	_, err := c.nodes.Mutate(ctx, "", n.Name, func(n *corev1.Node) error {
		n.Spec.Taints, _ = Taints(n, c.now())
		return nil
	})
	return ignoreNotFound(err)
}

// Taints gives the taints that a node should have: those that mirror its
// conditions, and all that others set.
func Taints(n *corev1.Node, now time.Time) (taints []corev1.Taint, changed bool) {
	wanted := map[corev1.Taint]bool{}
	want := func(on bool, key string, effect corev1.TaintEffect) {
		wanted[corev1.Taint{Key: key, Effect: effect}] = on
	}
	is := func(kind corev1.NodeConditionType, s corev1.ConditionStatus) bool {
		return condition(n, kind).Status == s
	}
	ready := condition(n, corev1.NodeReady).Status
	for _, effect := range []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute} {
		// A node that never reported is not ready, but nothing runs there to evict.
		want(ready == corev1.ConditionFalse || (ready == "" && effect == corev1.TaintEffectNoSchedule), corev1.TaintNodeNotReady, effect)
		want(ready == corev1.ConditionUnknown, corev1.TaintNodeUnreachable, effect)
	}
	want(is(corev1.NodeMemoryPressure, corev1.ConditionTrue), corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	want(is(corev1.NodeDiskPressure, corev1.ConditionTrue), corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	want(is(corev1.NodePIDPressure, corev1.ConditionTrue), corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	want(is(corev1.NodeNetworkUnavailable, corev1.ConditionTrue), corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	want(n.Spec.Unschedulable, corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)

	for _, t := range n.Spec.Taints {
		on, ours := wanted[corev1.Taint{Key: t.Key, Effect: t.Effect}]
		if ours && !on {
			changed = true
			continue
		}
		delete(wanted, corev1.Taint{Key: t.Key, Effect: t.Effect})
		taints = append(taints, t)
	}
	var missing []corev1.Taint
	for t, on := range wanted {
		if on {
			if t.Effect == corev1.TaintEffectNoExecute {
				added := metav1.NewTime(now).Rfc3339Copy()
				t.TimeAdded = &added
			}
			missing = append(missing, t)
		}
	}
	slices.SortFunc(missing, func(a, b corev1.Taint) int {
		if a.Key != b.Key {
			return compare(a.Key, b.Key)
		}
		return compare(string(a.Effect), string(b.Effect))
	})
	return append(taints, missing...), changed || len(missing) > 0
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

// markPodsNotReady takes the pods of a lost node out of service.
func (c *lifecycle) markPodsNotReady(ctx context.Context, n *corev1.Node) error {
	if condition(n, corev1.NodeReady).Status != corev1.ConditionUnknown {
		return nil // the node's own agent reports its pods
	}
	for _, p := range c.pods.OnNode(n.Name) {
		if !podReady(p) {
			continue
		}
		_, err := c.pods.MutateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
			for i := range p.Status.Conditions {
				if pc := &p.Status.Conditions[i]; pc.Type == corev1.PodReady && pc.Status == corev1.ConditionTrue {
					pc.Status, pc.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(c.now()).Rfc3339Copy()
				}
			}
			return nil
		})
		if err := ignoreNotFound(err); err != nil {
			return fmt.Errorf("mark pod %s/%s not ready: %w", p.Namespace, p.Name, err)
		}
		c.events.Event(p, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	return nil
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
