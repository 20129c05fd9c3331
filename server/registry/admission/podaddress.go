package admission

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

// podAddresses refuses addresses of pods that cannot be theirs. All nodes send
// to them what is meant for the pods' services, and nobody but their node says
// them.
func (n nodeRestriction) podAddresses(ctx context.Context, a *registry.Attempt, node string, pod, old *corev1.Pod) error {
	own, err := registry.Of[*corev1.Node](a.Registry).Get("", node)
	if err != nil {
		return nil // its pods are about to go
	}
	said := append(slices.Clone(pod.Status.PodIPs), corev1.PodIP{IP: pod.Status.PodIP})
	for _, p := range said {
		if p.IP == "" || slices.Contains(old.Status.PodIPs, p) || isNodeAddress(own, p.IP) {
			continue
		}
		ip, err := netip.ParseAddr(p.IP)
		if err != nil {
			return nil // validation says so
		}
		if err := n.podAddress(ctx, a.Registry, own, ip); err != nil {
			return fmt.Errorf("node %q cannot give pod %s the address %s: %w", node, pod.Name, ip, err)
		}
	}
	return nil
}

func isNodeAddress(n *corev1.Node, ip string) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == ip })
}

// podAddress: within the cluster's pod network a node has its own part alone;
// beyond it, where another network plugin may give addresses, it has no other
// node's, server's or service's.
func (n nodeRestriction) podAddress(ctx context.Context, r *registry.Registry, own *corev1.Node, ip netip.Addr) error {
	if !n.claims.Pods.Contains(ip) {
		return n.claims.Address(ctx, own.Name, corev1.NodeInternalIP, ip)
	}
	if share, err := netip.ParsePrefix(own.Spec.PodCIDR); err == nil && share.Contains(ip) {
		return nil
	}
	for _, other := range registry.Of[*corev1.Node](r).List("", nil) {
		if share, err := netip.ParsePrefix(other.Spec.PodCIDR); err == nil && other.Name != own.Name && share.Contains(ip) {
			return fmt.Errorf("it is in the part of the pod network of node %q", other.Name)
		}
	}
	return nil
}
