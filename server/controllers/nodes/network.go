package nodes

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// podNetworkBits is the size of a node's share of the cluster network.
const podNetworkBits = 24

// PodNetwork gives each node its own part of the cluster network, as
// spec.podCIDR.
func PodNetwork(r *registry.Registry, cluster *net.IPNet) *loop.Controller {
	nodes := registry.Of[*corev1.Node](r)
	return &loop.Controller{
		Name: "node-ipam",
		Sources: []loop.Source{loop.Changes(r, func(_, n *corev1.Node, deleted bool) []loop.Key {
			if deleted || n.Spec.PodCIDR != "" {
				return nil
			}
			return []loop.Key{loop.KeyOf(n)}
		})},
		// One worker: two nodes can never be given the same network.
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			n, err := nodes.Get("", key.Name)
			if err != nil || n.Spec.PodCIDR != "" {
				return 0, nil
			}
			share, err := freeShare(cluster, nodes.List("", nil))
			if err != nil {
				return 0, err
			}
			_, err = nodes.Mutate(ctx, "", key.Name, func(n *corev1.Node) error {
				if n.Spec.PodCIDR == "" {
					n.Spec.PodCIDR, n.Spec.PodCIDRs = share, []string{share}
				}
				return nil
			})
			return 0, ignoreNotFound(err)
		},
	}
}

// freeShare is the first part of the cluster network that no node has.
func freeShare(cluster *net.IPNet, nodes []*corev1.Node) (string, error) {
	taken := map[string]bool{}
	for _, n := range nodes {
		taken[n.Spec.PodCIDR] = true
	}
	ones, bits := cluster.Mask.Size()
	size := podNetworkBits
	if bits != 32 || ones > size {
		return "", fmt.Errorf("cluster network %s must be IPv4 and at least a /%d", cluster, size)
	}
	base := binary.BigEndian.Uint32(cluster.IP.To4())
	for i := range uint32(1) << (size - ones) {
		ip := make(net.IP, 4)
		binary.BigEndian.PutUint32(ip, base+i<<(32-size))
		share := (&net.IPNet{IP: ip, Mask: net.CIDRMask(size, 32)}).String()
		if !taken[share] {
			return share, nil
		}
	}
	return "", fmt.Errorf("cluster network %s has no /%d left for another node: use a larger --cluster-cidr", cluster, size)
}
