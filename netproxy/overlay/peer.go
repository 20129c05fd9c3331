// Package overlay joins the pods of all nodes: a VXLAN link, and for every
// other node the route, neighbour and forwarding entry that lead to its pods.
package overlay

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"orch/internal/podnet"
)

// hardwareAddr is six bytes that can be compared.
type hardwareAddr [6]byte

func (h hardwareAddr) String() string { return net.HardwareAddr(h[:]).String() }

// tunnelMAC is the hardware address of the VXLAN link of the node at addr. All
// nodes derive it alike, so that nobody needs to announce it.
func tunnelMAC(addr netip.Addr) hardwareAddr {
	four := addr.As4()
	return hardwareAddr{0x0e, 0x76, four[0], four[1], four[2], four[3]}
}

// admit leaves out the peers that cannot be: nodes are outside of the pods' and
// services' ranges, pods within the cluster's, and no pod is at two nodes. A
// server sees to that; this is the last look before it costs somebody the
// network. Of two nodes that claim the same, who had it before keeps it.
func (l Limits) admit(peers, before map[string]podnet.Peer) map[string]podnet.Peer {
	names := make([]string, 0, len(peers))
	for name, p := range peers {
		if l.allow(p) {
			names = append(names, name)
		}
	}
	had := func(name string) bool { return before[name] == peers[name] }
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(peers[a].Range.Addr().Compare(peers[b].Range.Addr()), cmp.Compare(peers[a].Range.Bits(), peers[b].Range.Bits()), cmp.Compare(a, b))
	})
	// Sorted so, a range that overlaps an earlier one lies in the last that was kept.
	var kept []string
	for _, name := range names {
		last := len(kept) - 1
		switch {
		case last < 0 || !peers[kept[last]].Range.Overlaps(peers[name].Range):
			kept = append(kept, name)
		case had(name) && !had(kept[last]):
			kept[last] = name
		}
	}
	admitted := make(map[string]podnet.Peer, len(kept))
	for _, name := range kept {
		admitted[name] = peers[name]
	}
	return admitted
}

// Limits are where nodes and their pods can be, as this node sees it.
type Limits struct {
	Own, Cluster, Services netip.Prefix // ranges: of this node's pods, of all, of services
}

func (l Limits) allow(p podnet.Peer) bool {
	return p.Addr.Is4() && p.Addr.IsGlobalUnicast() && !l.Cluster.Contains(p.Addr) && !l.Services.Contains(p.Addr) &&
		p.Range.IsValid() && p.Range == p.Range.Masked() && p.Range.Bits() >= l.Cluster.Bits() && l.Cluster.Contains(p.Range.Addr()) && !p.Range.Overlaps(l.Own)
}

// entries are what the kernel holds for the overlay's link.
type entries struct {
	routes     map[netip.Prefix]netip.Addr // range of pods -> tunnel address of its node
	neighbours map[netip.Addr]hardwareAddr // tunnel address -> its link's
	forwards   map[hardwareAddr]netip.Addr // link's address -> node
}

func newEntries() entries {
	return entries{
		routes:     make(map[netip.Prefix]netip.Addr),
		neighbours: make(map[netip.Addr]hardwareAddr),
		forwards:   make(map[hardwareAddr]netip.Addr),
	}
}

// plan gives the entries that lead to the peers. The tunnel address of a node
// is the first of its range (the network's own, which no pod gets).
func plan(peers map[string]podnet.Peer) entries {
	e := newEntries()
	for _, p := range peers {
		mac := tunnelMAC(p.Addr)
		e.routes[p.Range] = p.Range.Addr()
		e.neighbours[p.Range.Addr()] = mac
		e.forwards[mac] = p.Addr
	}
	return e
}

// difference gives what to set and what to remove in order to get from have to want.
func difference[K comparable, V comparable](have, want map[K]V) (set map[K]V, remove map[K]V) {
	set, remove = make(map[K]V), make(map[K]V)
	for k, v := range want {
		if old, found := have[k]; !found || old != v {
			set[k] = v
		}
	}
	for k, v := range have {
		if _, wanted := want[k]; !wanted {
			remove[k] = v
		}
	}
	return set, remove
}
