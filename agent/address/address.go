// Package address finds by which address this machine is a node, and follows it.
package address

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
)

// machine is what the kernel says of addresses.
type machine struct {
	addresses []located
	out       netip.Addr // packets to elsewhere leave from it; invalid: there is no way out
}

// located is an address and where it is.
type located struct {
	addr netip.Addr
	link string
	up   bool
}

// internal names the links that orch and other container runtimes make: their
// addresses mean something on this machine only.
var internal = regexp.MustCompile(`^(orch0|orch-vxlan|docker\d+|docker_gwbridge|br-[0-9a-f]{12}|podman\d+|cni\d+|cni-.*|lxcbr\d+|lxdbr\d+|virbr\d+|veth.*|cali.*|cilium_.*|lxc[0-9a-f]+|flannel.*|kube-.*|nodelocaldns|tunl\d+|vxlan.*)$`)

func usable(l located) bool {
	return l.up && l.addr.Is4() && l.addr.IsGlobalUnicast() && !internal.MatchString(l.link)
}

// choose gives the address that packets to elsewhere leave from; on a machine
// without a way out, the first one that is not internal.
func (m *machine) choose() (netip.Addr, bool) {
	if m.has(m.out) {
		return m.out, true
	}
	for _, l := range m.addresses {
		if usable(l) {
			return l.addr, true
		}
	}
	return netip.Addr{}, false
}

// has tells whether addr is here and can be the node's.
func (m *machine) has(addr netip.Addr) bool {
	return slices.ContainsFunc(m.addresses, func(l located) bool { return l.addr == addr && usable(l) })
}

// elsewhere is an address that nobody has (RFC 5737): the way there is the way out.
var elsewhere = netip.MustParseAddr("192.0.2.1")

// look reads the kernel.
func look() (*machine, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names, up := make(map[int]string), make(map[int]bool)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index], up[a.Index] = a.Name, a.RawFlags&1 != 0 // IFF_UP
	}
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	m := new(machine)
	for _, a := range all {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			m.addresses = append(m.addresses, located{addr, names[a.LinkIndex], up[a.LinkIndex]})
		}
	}
	if routes, err := netlink.RouteGet(elsewhere.AsSlice()); err == nil && len(routes) > 0 {
		m.out, _ = netip.AddrFromSlice(routes[0].Src.To4())
	}
	return m, nil
}
