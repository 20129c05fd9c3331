package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AnchorName is the default name of the link that carries the node's own
// cluster addresses.
const AnchorName = "orch0"

// Anchor describes the link that carries the node's own cluster addresses: the
// pods' gateway and the DNS address. It is a bridge without ports, because
// every kernel that runs containers has bridges and not every one has dummies.
type Anchor struct {
	Name      string
	Addresses []netip.Addr
	// ServiceCIDR is routed to the anchor, so that a node without a default
	// route still reaches services: the route lets the packet get as far as the
	// rules that give it its real destination.
	ServiceCIDR netip.Prefix
	NodeIP      netip.Addr
	// ClusterCIDR is unreachable as far as no pod and no node holds a part of it:
	// a connection to a pod that is gone fails at once, and nothing of it leaks
	// towards the default route.
	ClusterCIDR netip.Prefix
}

// Ensure makes the link, gives it exactly the addresses and sets the route.
func (a *Anchor) Ensure() error {
	if err := writeSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("enable IPv4 forwarding (sysctl -w net.ipv4.ip_forward=1): %w", err)
	}
	link, err := a.link()
	if err != nil {
		return err
	}
	if err := a.syncAddresses(link); err != nil {
		return err
	}
	if a.ClusterCIDR.IsValid() {
		if err := netlink.RouteReplace(unreachable(a.ClusterCIDR)); err != nil {
			return fmt.Errorf("refuse what leads to no pod: %w", err)
		}
	}
	if !a.ServiceCIDR.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: network(a.ServiceCIDR), Scope: netlink.SCOPE_LINK}
	if localAddress(a.NodeIP) {
		route.Src = a.NodeIP.AsSlice()
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route services to %s: %w", a.Name, err)
	}
	return nil
}

func (a *Anchor) link() (netlink.Link, error) {
	link, err := netlink.LinkByName(a.Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: a.Name, TxQLen: -1}}
		if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make %s: %w", a.Name, err)
		}
		link, err = netlink.LinkByName(a.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", a.Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", a.Name, err)
	}
	return link, nil
}

// syncAddresses adds the wanted addresses and removes others, which an
// earlier configuration left.
func (a *Anchor) syncAddresses(link netlink.Link) error {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	wanted := make(map[string]bool)
	for _, addr := range a.Addresses {
		wanted[host(addr).String()] = true
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: host(addr)}); err != nil {
			return fmt.Errorf("add %s to %s: %w", addr, a.Name, err)
		}
	}
	for i := range old {
		if wanted[old[i].IPNet.String()] {
			continue
		}
		if err := netlink.AddrDel(link, &old[i]); err != nil {
			return fmt.Errorf("remove %s from %s: %w", old[i].IPNet, a.Name, err)
		}
	}
	return nil
}

// routeOrigin marks routes without a link as ours (the kernel's rtm_protocol).
const routeOrigin = 0x6f

func unreachable(prefix netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: network(prefix), Type: unix.RTN_UNREACHABLE, Protocol: routeOrigin, Priority: 1 << 20}
}

// Remove deletes the link with its addresses and routes.
func (a *Anchor) Remove() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeOrigin}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range routes {
		if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", routes[i].Dst, err)
		}
	}
	return detach(a.Name)
}

// localAddress tells whether the node holds addr.
func localAddress(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return false
	}
	for _, a := range all {
		if a.IP.Equal(addr.AsSlice()) {
			return true
		}
	}
	return false
}

// UplinkMTU is the smallest MTU of the links that carry a default route or the
// node's address; 1500 if there are none.
func UplinkMTU(nodeIP netip.Addr) int {
	mtu := 0
	for _, index := range uplinks(nodeIP) {
		link, err := netlink.LinkByIndex(index)
		if err == nil && link.Attrs().MTU > 0 && (mtu == 0 || link.Attrs().MTU < mtu) {
			mtu = link.Attrs().MTU
		}
	}
	if mtu == 0 {
		return 1500
	}
	return min(mtu, ethernetMax)
}

// ethernetMax keeps a loopback uplink (65536) from giving an MTU veth refuses.
const ethernetMax = 65535

func uplinks(nodeIP netip.Addr) []int {
	var found []int
	routes, _ := netlink.RouteList(nil, netlink.FAMILY_V4)
	for _, route := range routes {
		if (route.Dst == nil || route.Dst.IP.IsUnspecified()) && route.LinkIndex > 0 {
			found = append(found, route.LinkIndex)
		}
	}
	addrs, _ := netlink.AddrList(nil, netlink.FAMILY_V4)
	for _, addr := range addrs {
		if nodeIP.IsValid() && addr.IP.Equal(nodeIP.AsSlice()) {
			found = append(found, addr.LinkIndex)
		}
	}
	return found
}

func network(prefix netip.Prefix) *net.IPNet {
	prefix = prefix.Masked()
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

// installFile puts data at path unless it is there already.
func installFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	return replaceFile(path, data, mode)
}
