// Package overlay joins the pods of all nodes: a VXLAN link, and for every
// other node the route, neighbour and forwarding entry that lead to its pods.
package overlay

import (
	"net"
	"net/netip"

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
