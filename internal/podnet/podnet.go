// Package podnet is what servers tell nodes about the pod network: which node's
// pods have which addresses, and where that node is.
//
// Every node needs to know this of all others. A watch of all Nodes would tell it
// as well, but also each report of each node to all of them: with a thousand
// nodes that is what a server would do most of the time.
package podnet

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Path is where a server streams Updates to nodes, a line of JSON each. The first
// one is Whole; what changes follows until either side ends the stream.
const Path = "/v1-orch/podnet"

// Peer is a node as all others see it.
type Peer struct {
	Addr  netip.Addr   `json:"addr"`  // where packets for its pods go
	Range netip.Prefix `json:"range"` // of its pods
}

// Update is a change of the pod network.
type Update struct {
	Whole bool            `json:"whole,omitempty"` // Peers are all that there are
	Peers map[string]Peer `json:"peers,omitempty"` // by node, new or changed
	Gone  []string        `json:"gone,omitempty"`  // nodes
}

// PeerOf reads a node; ok is false while it has no address or no range.
func PeerOf(n *corev1.Node) (p Peer, ok bool) {
	prefix, err := netip.ParsePrefix(n.Spec.PodCIDR)
	if err != nil || !prefix.Addr().Is4() {
		return Peer{}, false
	}
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil && addr.Is4() {
			return Peer{Addr: addr, Range: prefix.Masked()}, true
		}
	}
	return Peer{}, false
}
