package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkName is the default name of the VXLAN link.
const LinkName = "orch-vxlan"

// Overhead is what VXLAN adds to a packet: outer IPv4, UDP and VXLAN headers
// and the inner Ethernet header, in bytes.
const Overhead = 50

const (
	port     = 8472 // UDP; Linux' own, as others use it
	identity = 1    // VXLAN network identifier
)

// Device is the VXLAN link of this node.
type Device struct {
	Name  string
	Addr  netip.Addr   // of the node; other nodes send there
	Range netip.Prefix // of the node's pods
	MTU   int          // inner
	// Limits are those of the nodes that may be reached.
	Limits Limits

	link netlink.Link // set by ensure
}

// ensure makes the link, or takes over one that an earlier process left if it
// has the same parameters.
func (d *Device) ensure() error {
	wanted := d.wanted()
	link, err := netlink.LinkByName(d.Name)
	switch {
	case err == nil && !same(link, wanted):
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove the outdated %s: %w", d.Name, err)
		}
	case err == nil:
		return d.configure(link)
	case !errors.As(err, new(netlink.LinkNotFoundError)):
		return fmt.Errorf("find %s: %w", d.Name, err)
	}
	if err := netlink.LinkAdd(wanted); err != nil {
		return fmt.Errorf("make VXLAN link %s (identifier %d, UDP port %d): %w", d.Name, identity, port, err)
	}
	if link, err = netlink.LinkByName(d.Name); err != nil {
		return fmt.Errorf("find %s: %w", d.Name, err)
	}
	return d.configure(link)
}

func (d *Device) wanted() *netlink.Vxlan {
	mac := tunnelMAC(d.Addr)
	v := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: d.Name, HardwareAddr: mac[:], MTU: d.MTU, TxQLen: -1},
		VxlanId:   identity, Port: port,
	}
	// An address that is not on the machine (behind NAT) cannot be a source.
	if addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4); err == nil {
		for _, a := range addrs {
			if a.IP.Equal(d.Addr.AsSlice()) {
				v.SrcAddr = d.Addr.AsSlice()
			}
		}
	}
	return v
}

func same(link netlink.Link, wanted *netlink.Vxlan) bool {
	v, ok := link.(*netlink.Vxlan)
	// While the node's address is away, a link that was made for it stays.
	source := ok && (v.SrcAddr.Equal(wanted.SrcAddr) || wanted.SrcAddr == nil && tunnelMAC(addrOf(v.SrcAddr)).String() == wanted.HardwareAddr.String())
	return source && v.VxlanId == wanted.VxlanId && v.Port == wanted.Port && !v.Learning &&
		v.HardwareAddr.String() == wanted.HardwareAddr.String()
}

func addrOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip.To4())
	if !addr.IsValid() {
		return netip.IPv4Unspecified()
	}
	return addr
}

// configure gives the link its address, from which the node itself talks to
// pods elsewhere, so that their answers come back through the overlay.
func (d *Device) configure(link netlink.Link) error {
	d.link = link
	if link.Attrs().MTU != d.MTU {
		if err := netlink.LinkSetMTU(link, d.MTU); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", d.Name, err)
		}
	}
	own := &net.IPNet{IP: d.Range.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", d.Name, err)
	}
	for i := range old {
		if old[i].IPNet.String() != own.String() {
			if err := netlink.AddrDel(link, &old[i]); err != nil {
				return fmt.Errorf("remove %s from %s: %w", old[i].IPNet, d.Name, err)
			}
		}
	}
	if !slices.ContainsFunc(old, func(a netlink.Addr) bool { return a.IPNet.String() == own.String() }) {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: own}); err != nil {
			return fmt.Errorf("add %s to %s: %w", own, d.Name, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", d.Name, err)
	}
	return nil
}

// entries reads what the kernel holds, whoever put it there.
func (d *Device) entries() (entries, error) {
	e := newEntries()
	index := d.link.Attrs().Index
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return e, fmt.Errorf("list routes of %s: %w", d.Name, err)
	}
	for _, r := range routes {
		if prefix, ok := prefixOf(r.Dst); ok {
			gateway, _ := netip.AddrFromSlice(r.Gw.To4())
			e.routes[prefix] = gateway
		}
	}
	neighbours, err := netlink.NeighList(index, netlink.FAMILY_V4)
	if err != nil {
		return e, fmt.Errorf("list neighbours of %s: %w", d.Name, err)
	}
	for _, n := range neighbours {
		if addr, ok := netip.AddrFromSlice(n.IP.To4()); ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
			e.neighbours[addr] = hardwareAddr(n.HardwareAddr)
		}
	}
	forwards, err := netlink.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return e, fmt.Errorf("list forwarding entries of %s: %w", d.Name, err)
	}
	for _, f := range forwards {
		if addr, ok := netip.AddrFromSlice(f.IP.To4()); ok && len(f.HardwareAddr) == 6 {
			e.forwards[hardwareAddr(f.HardwareAddr)] = addr
		}
	}
	return e, nil
}

// apply gets the kernel from have to want. A route comes after what it needs
// and goes before it.
func (d *Device) apply(have, want entries) error {
	var errs []error
	setRoutes, removeRoutes := difference(have.routes, want.routes)
	setNeighbours, removeNeighbours := difference(have.neighbours, want.neighbours)
	setForwards, removeForwards := difference(have.forwards, want.forwards)
	for prefix, gateway := range removeRoutes {
		errs = append(errs, gone(netlink.RouteDel(d.route(prefix, gateway))))
	}
	for addr, mac := range removeNeighbours {
		errs = append(errs, gone(netlink.NeighDel(d.neighbour(addr, mac))))
	}
	for mac, addr := range removeForwards {
		errs = append(errs, gone(netlink.NeighDel(d.forward(mac, addr))))
	}
	for mac, addr := range setForwards {
		errs = append(errs, wrap("forwarding entry of", addr, netlink.NeighSet(d.forward(mac, addr))))
	}
	for addr, mac := range setNeighbours {
		errs = append(errs, wrap("neighbour", addr, netlink.NeighSet(d.neighbour(addr, mac))))
	}
	for prefix, gateway := range setRoutes {
		errs = append(errs, wrap("route to", prefix, netlink.RouteReplace(d.route(prefix, gateway))))
	}
	return errors.Join(errs...)
}

func wrap(what string, which fmt.Stringer, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("set %s %s: %w", what, which, err)
}

// gone forgives the removal of what is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (d *Device) route(prefix netip.Prefix, gateway netip.Addr) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: d.link.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
		Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)},
	}
	if gateway.IsValid() {
		r.Gw = gateway.AsSlice()
	}
	return r
}

func (d *Device) neighbour(addr netip.Addr, mac hardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: d.link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac[:],
	}
}

func (d *Device) forward(mac hardwareAddr, addr netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: d.link.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: addr.AsSlice(), HardwareAddr: mac[:],
	}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}

// Remove deletes the link with all its entries, for uninstalling.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	return gone(netlink.LinkDel(link))
}
