package rules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// udpFrontend is an address that leads to UDP endpoints. UDP has no end of
// connection that the kernel could see: a client that keeps its port stays
// tied to an endpoint that is gone unless the entry is deleted.
type udpFrontend struct {
	addr      netip.AddrPort // an invalid address means every one of the node
	endpoints []netip.AddrPort
}

func udpFrontends(p *ServicePort) []udpFrontend {
	if p.Protocol != "udp" {
		return nil
	}
	var endpoints []netip.AddrPort
	for _, e := range slices.Concat(p.Cluster, p.Local) {
		endpoints = append(endpoints, e.Addr)
	}
	addrs := slices.Concat([]netip.Addr{p.ClusterIP}, p.ExternalIPs, p.LoadBalancerIPs)
	var frontends []udpFrontend
	for _, addr := range addrs {
		frontends = append(frontends, udpFrontend{netip.AddrPortFrom(addr, p.Port), endpoints})
	}
	if p.NodePort != 0 {
		frontends = append(frontends, udpFrontend{netip.AddrPortFrom(netip.Addr{}, p.NodePort), endpoints})
	}
	return frontends
}

// staleFrontends lists the front ends of either fragment whose endpoints differ.
func staleFrontends(last, next *fragment) []udpFrontend {
	find := func(f *fragment, addr netip.AddrPort) (udpFrontend, bool) {
		if f == nil {
			return udpFrontend{}, false
		}
		i := slices.IndexFunc(f.udp, func(u udpFrontend) bool { return u.addr == addr })
		if i < 0 {
			return udpFrontend{}, false
		}
		return f.udp[i], true
	}
	var stale []udpFrontend
	if next != nil {
		for _, u := range next.udp {
			if old, found := find(last, u.addr); !found || !slices.Equal(old.endpoints, u.endpoints) {
				stale = append(stale, u)
			}
		}
	}
	if last != nil {
		for _, u := range last.udp {
			if _, found := find(next, u.addr); !found {
				stale = append(stale, udpFrontend{addr: u.addr})
			}
		}
	}
	return stale
}

// Conntrack forgets connections that would bypass new rules.
type Conntrack struct{}

// Forget deletes the UDP entries to a front end that are tied to anything but
// one of its endpoints.
func (Conntrack) Forget(frontends []udpFrontend) error {
	local, err := localAddresses("")
	if err != nil {
		return err
	}
	_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, &staleFlows{frontends, local})
	if err != nil {
		return fmt.Errorf("delete stale conntrack entries: %w", err)
	}
	return nil
}

type staleFlows struct {
	frontends []udpFrontend
	local     map[netip.Addr]bool
}

// MatchConntrackFlow tells whether to delete flow.
func (s *staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	for _, u := range s.frontends {
		if u.addr.Port() != to.Port() {
			continue
		}
		if u.addr.Addr() == to.Addr() || (!u.addr.Addr().IsValid() && s.local[to.Addr()]) {
			return !slices.Contains(u.endpoints, addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort))
		}
	}
	return false
}

func addrPort(ip []byte, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}

// localAddresses are those of all links but one.
func localAddresses(except string) (map[netip.Addr]bool, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	left := -1
	if link, err := netlink.LinkByName(except); err == nil {
		left = link.Attrs().Index
	}
	local := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		if a.LinkIndex == left {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			local[addr.Unmap()] = true
		}
	}
	return local, nil
}
