package node

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A lease says for how long the node may be silent before it counts as gone.
const (
	leaseDuration int32 = 40 // seconds
	leaseInterval       = 10 * time.Second
	// leaseTimeout leaves time to renew the lease at another server before it ends.
	leaseTimeout = 4 * time.Second
)

// renewLease renews the node's lease until ctx ends. The lease is remembered
// between renewals, so that one takes one request.
func (m *Manager) renewLease(ctx context.Context) error {
	var last *coordinationv1.Lease
	wait := backoff{next: leaseInterval, limit: leaseInterval}
	failures, refusals := 0, 0
	for {
		lease, err := m.writeLease(ctx, last)
		switch {
		case err == nil:
			last, failures, refusals = lease, 0, 0
			wait = backoff{next: leaseInterval, limit: leaseInterval}
		case ctx.Err() != nil:
			return nil
		default:
			m.settle()
			if last, failures = nil, failures+1; failures == 5 {
				m.log.Warn("cannot renew the node's lease; the cluster will soon think this node gone", "err", err)
			}
			if apierrors.IsUnauthorized(err) {
				refusals++
			} else {
				refusals = 0
			}
			if refusals == refusalsBelieved {
				return ErrRefused
			}
			if failures == 1 {
				wait = backoff{next: 200 * time.Millisecond, limit: 7 * time.Second}
			}
		}
		if !wait.wait(ctx) {
			return nil
		}
	}
}

// writeLease renews last, or finds or makes the lease when there is none to go by.
func (m *Manager) writeLease(ctx context.Context, last *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	leases := m.cfg.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	if last == nil {
		found, err := leases.Get(ctx, m.cfg.NodeName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return leases.Create(ctx, m.newLease(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: m.cfg.NodeName}}), metav1.CreateOptions{})
		}
		if err != nil {
			return nil, err
		}
		last = found
	}
	return leases.Update(ctx, m.newLease(last), metav1.UpdateOptions{})
}

// newLease is old renewed now. It belongs to the node, so that it goes with it.
func (m *Manager) newLease(old *coordinationv1.Lease) *coordinationv1.Lease {
	lease := old.DeepCopy()
	duration, now := leaseDuration, metav1.NewMicroTime(m.cfg.Now())
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &m.cfg.NodeName, &duration, &now
	if n := m.Node(); n != nil && len(lease.OwnerReferences) == 0 {
		lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	return lease
}
