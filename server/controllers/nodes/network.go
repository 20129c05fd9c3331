package nodes

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/internal/podnet"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// podNetworkBits is the size of a node's share of the cluster network.
const podNetworkBits = podnet.ShareBits

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

// freeShare is the first part of the cluster network that no node has any of.
func freeShare(cluster *net.IPNet, nodes []*corev1.Node) (string, error) {
	ones, bits := cluster.Mask.Size()
	if bits != 32 || ones > podNetworkBits {
		return "", fmt.Errorf("cluster network %s must be IPv4 and at least a /%d", cluster, podNetworkBits)
	}
	const shift = 32 - podNetworkBits
	base := binary.BigEndian.Uint32(cluster.IP.To4())
	network := netip.PrefixFrom(netip.AddrFrom4([4]byte(cluster.IP.To4())), ones)
	taken := make([]bool, 1<<(podNetworkBits-ones))
	for _, n := range nodes {
		held, err := podnet.Share(n, network)
		if err != nil {
			continue // nobody follows it: it takes nothing from others
		}
		first := int64(ipv4(held.Masked().Addr())) - int64(base)
		last := first + 1<<(32-held.Bits()) - 1
		for i := max(0, first>>shift); i <= min(last>>shift, int64(len(taken)-1)); i++ {
			taken[i] = true
		}
	}
	free := slices.Index(taken, false)
	if free < 0 {
		return "", fmt.Errorf("cluster network %s has no /%d left for another node: use a larger --cluster-cidr", cluster, podNetworkBits)
	}
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], base+uint32(free)<<shift)
	return netip.PrefixFrom(netip.AddrFrom4(ip), podNetworkBits).String(), nil
}

func ipv4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
