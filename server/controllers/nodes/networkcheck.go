package nodes

import (
	"context"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/internal/podnet"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Reasons of a node's condition NetworkUnavailable.
const (
	shareRefused  = "PodCIDRRefused"
	shareAccepted = "PodCIDRAccepted"
)

// PodNetworkCheck tells of nodes whose spec.podCIDR nobody follows, by their
// condition NetworkUnavailable and an event, and takes it back when the cause
// has gone. The server's own allocation never makes any.
func PodNetworkCheck(r *registry.Registry, cluster netip.Prefix, events record.EventRecorder, now func() time.Time) *loop.Controller {
	c := &shareCheck{nodes: registry.Of[*corev1.Node](r), events: events, now: now, shares: podnet.NewShares(cluster)}
	return &loop.Controller{
		Name: "node-ipam-check",
		Sources: []loop.Source{loop.Changes(r, func(old, n *corev1.Node, deleted bool) []loop.Key {
			if old != nil && !deleted && old.UID == n.UID && old.Spec.PodCIDR == n.Spec.PodCIDR {
				return nil
			}
			return c.touched(n, deleted)
		})},
		Reconcile: c.reconcile,
	}
}

type shareCheck struct {
	nodes  registry.Typed[*corev1.Node]
	events record.EventRecorder
	now    func() time.Time

	mu     sync.Mutex // guards shares
	shares *podnet.Shares
}

// touched notes a node's share and gives all whose right to theirs may be
// another from now on.
func (c *shareCheck) touched(n *corev1.Node, deleted bool) []loop.Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	if deleted {
		names = c.shares.Remove(n.Name)
	} else {
		names = append(c.shares.Set(n), n.Name)
	}
	keys := make([]loop.Key, 0, len(names))
	for _, name := range names {
		keys = append(keys, loop.Key{Name: name})
	}
	return keys
}

func (c *shareCheck) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	n, err := c.nodes.Get("", key.Name)
	if err != nil || n.Spec.PodCIDR == "" {
		return 0, nil
	}
	c.mu.Lock()
	refusal := c.shares.Check(n)
	c.mu.Unlock()
	told := condition(n, corev1.NodeNetworkUnavailable)
	was := told.Status == corev1.ConditionTrue && told.Reason == shareRefused
	want := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: shareAccepted, Message: "spec.podCIDR is followed",
	}
	if refusal != nil {
		want.Status, want.Reason = corev1.ConditionTrue, shareRefused
		want.Message = "spec.podCIDR " + refusal.Error() + ": delete this Node, and the server gives it a share when it registers again"
	}
	if was == (refusal != nil) && (refusal == nil || told.Message == want.Message) {
		return 0, nil
	}
	_, err = c.nodes.MutateStatus(ctx, "", n.Name, func(n *corev1.Node) error {
		SetCondition(n, want, metav1.NewTime(c.now()).Rfc3339Copy())
		return nil
	})
	if err == nil && refusal != nil {
		c.events.Event(n, corev1.EventTypeWarning, shareRefused, want.Message)
	}
	return 0, ignoreNotFound(err)
}

// SetCondition replaces the condition of the same type.
func SetCondition(n *corev1.Node, want corev1.NodeCondition, now metav1.Time) {
	want.LastHeartbeatTime, want.LastTransitionTime = now, now
	for i := range n.Status.Conditions {
		if c := &n.Status.Conditions[i]; c.Type == want.Type {
			*c = want
			return
		}
	}
	n.Status.Conditions = append(n.Status.Conditions, want)
}
