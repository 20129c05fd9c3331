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

// PeerOf reads a node; ok is false while it has no address that others can send
// to, or no share of the cluster network.
func PeerOf(n *corev1.Node, cluster netip.Prefix) (p Peer, ok bool) {
	share, err := Share(n, cluster)
	if err != nil {
		return Peer{}, false
	}
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if a.Type == corev1.NodeInternalIP && err == nil && addr.Is4() && addr.IsGlobalUnicast() && !cluster.Contains(addr) {
			return Peer{Addr: addr, Range: share}, true
		}
	}
	return Peer{}, false
}
