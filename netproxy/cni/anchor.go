package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"orch/netproxy/kernel"
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
	// LoopbackPorts lets connections to 127.0.0.1 (host ports, node ports) lead to
	// pods and machines elsewhere, as kube-proxy has it. Only where rules drop what
	// was not asked for: whoever shares a link with the node could reach its own
	// loopback otherwise (CVE-2020-8558).
	LoopbackPorts bool
	// ClusterCIDR is unreachable as far as no pod and no node holds a part of it:
	// a connection to a pod that is gone fails at once, and nothing of it leaks
	// towards the default route.
	ClusterCIDR netip.Prefix
}

// The kernel parameters that the anchor keeps.
const (
	forwarding    = "net/ipv4/ip_forward"
	routeLocalnet = "net/ipv4/conf/all/route_localnet"
)

// AnchorParameters are below /proc/sys.
func AnchorParameters() []string { return []string{forwarding, routeLocalnet} }

// Ensure makes the link, gives it exactly the addresses and sets the routes. What
// LoopbackPorts opened stays open until Mend, for the rules of an earlier process
// are in force, too.
func (a *Anchor) Ensure() error {
	link, err := a.link()
	if err != nil {
		return err
	}
	if err := a.removeOthers(link); err != nil {
		return err
	}
	_, err = a.mend(link)
	return err
}

// Mend brings back what is not there, and tells what that was.
func (a *Anchor) Mend() (mended []string, err error) {
	link, err := a.link()
	if err != nil {
		return nil, err
	}
	mended, err = a.mend(link)
	if err != nil {
		return mended, err
	}
	localnet := "0"
	if a.LoopbackPorts {
		localnet = "1"
	}
	opened, err := setParameter(routeLocalnet, localnet, "ports of the node at 127.0.0.1")
	return append(mended, opened...), err
}

func (a *Anchor) mend(link netlink.Link) (mended []string, err error) {
	added, err := a.addAddresses(link)
	if err != nil {
		return added, err
	}
	h, err := look()
	if err != nil {
		return added, err
	}
	mended = added
	for _, route := range a.routes(link) {
		if h.routed(route) {
			continue
		}
		mended = append(mended, "route to "+route.Dst.String())
		if err := netlink.RouteReplace(route); err != nil {
			return mended, fmt.Errorf("route %s to %s: %w", route.Dst, a.Name, err)
		}
	}
	parameters, err := setParameter(forwarding, "1", "enable IPv4 forwarding (sysctl -w net.ipv4.ip_forward=1)")
	return append(mended, parameters...), err
}

func setParameter(name, value, purpose string) (mended []string, err error) {
	if now, err := kernel.Number(name); err == nil && strconv.Itoa(now) == value {
		return nil, nil
	}
	if err := kernel.Set(name, value); err != nil {
		return nil, fmt.Errorf("%s: %w", purpose, err)
	}
	return []string{name}, nil
}

// routes are those of the anchor: what no pod and no node holds of the cluster's
// range is unreachable, and services are reached from the node's own address among
// the pods.
func (a *Anchor) routes(link netlink.Link) []*netlink.Route {
	var all []*netlink.Route
	if a.ClusterCIDR.IsValid() {
		all = append(all, unreachable(a.ClusterCIDR))
	}
	if a.ServiceCIDR.IsValid() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: network(a.ServiceCIDR), Scope: netlink.SCOPE_LINK}
		if len(a.Addresses) > 0 {
			route.Src = a.Addresses[0].AsSlice()
		}
		all = append(all, route)
	}
	return all
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
	if link.Attrs().Flags&net.FlagUp != 0 {
		return link, nil
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", a.Name, err)
	}
	return link, nil
}

// addAddresses gives the link what it lacks.
func (a *Anchor) addAddresses(link netlink.Link) (added []string, err error) {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	for _, addr := range a.Addresses {
		if slices.ContainsFunc(old, func(o netlink.Addr) bool { return o.IPNet.String() == host(addr).String() }) {
			continue
		}
		added = append(added, "address "+addr.String())
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: host(addr)}); err != nil {
			return added, fmt.Errorf("add %s to %s: %w", addr, a.Name, err)
		}
	}
	return added, nil
}

// removeOthers takes away addresses that an earlier configuration left.
func (a *Anchor) removeOthers(link netlink.Link) error {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	for i := range old {
		if slices.ContainsFunc(a.Addresses, func(addr netip.Addr) bool { return old[i].IPNet.String() == host(addr).String() }) {
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

// Remove deletes the link with its addresses and routes, and shuts what
// LoopbackPorts opened: the rules that guard it go, too.
func (a *Anchor) Remove() error {
	if err := kernel.Set(routeLocalnet, "0"); err != nil {
		return err
	}
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
