package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostMAC is the hardware address of every host end of a pod's veth pair. A
// pod's neighbour entry for its gateway is therefore known beforehand, and the
// links of ours are told from anybody else's by it. Point-to-point links never
// meet, so sharing it is harmless.
var hostMAC = net.HardwareAddr{0x0e, 0x6f, 0x72, 0x63, 0x68, 0x01}

// podMAC derives the hardware address of a pod from its IPv4 address.
func podMAC(addr netip.Addr) net.HardwareAddr {
	four := addr.As4()
	return net.HardwareAddr{0x0a, 0x58, four[0], four[1], four[2], four[3]}
}

// hostLinkName names the host end of the pair of one sandbox interface. The
// prefix "veth" is the one that network managers leave alone by default.
func hostLinkName(id, ifName string) string {
	sum := sha256.Sum256([]byte(id + "/" + ifName))
	return "veth" + hex.EncodeToString(sum[:])[:11]
}

// wiring is what links need to know of the node.
type wiring struct {
	// gateway is also from where the node itself talks to pods: the node's address
	// may change, and with a source all that is routed by it goes.
	gateway netip.Addr
	mtu     int
}

// attach joins the sandbox to the node by a veth pair: routed, not bridged.
// The pod holds its address alone (/32) and a default route to the gateway;
// the node holds a route to the pod. Both neighbour entries are permanent.
func (w *wiring) attach(rec *record) error {
	ns, err := netns.GetFromPath(rec.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", rec.NetNS, err)
	}
	defer ns.Close()
	pair := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: rec.HostLink, MTU: w.mtu, HardwareAddr: hostMAC, Flags: net.FlagUp, TxQLen: -1},
		PeerName:         rec.IfName,
		PeerHardwareAddr: podMAC(rec.Addr),
		PeerNamespace:    netlink.NsFd(int(ns)),
		PeerMTU:          uint32(w.mtu),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s: %w", rec.HostLink, err)
	}
	if err := w.configurePod(ns, rec); err != nil {
		return err
	}
	return w.configureHost(pair.Index, rec)
}

// configurePod sets up the pod's end inside its namespace.
func (w *wiring) configurePod(ns netns.NsHandle, rec *record) error {
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer pod.Close()
	if lo, err := pod.LinkByName("lo"); err != nil {
		return fmt.Errorf("find loopback: %w", err)
	} else if err := pod.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	link, err := pod.LinkByName(rec.IfName)
	if err != nil {
		return fmt.Errorf("find %s: %w", rec.IfName, err)
	}
	if err := pod.AddrAdd(link, &netlink.Addr{IPNet: host(rec.Addr)}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", rec.IfName, err)
	}
	index := link.Attrs().Index
	if err := pod.NeighSet(neighbour(index, w.gateway, hostMAC)); err != nil {
		return fmt.Errorf("add gateway neighbour: %w", err)
	}
	toGateway := &netlink.Route{LinkIndex: index, Dst: host(w.gateway), Scope: netlink.SCOPE_LINK}
	if err := pod.RouteAdd(toGateway); err != nil {
		return fmt.Errorf("add gateway route: %w", err)
	}
	if err := pod.RouteAdd(&netlink.Route{LinkIndex: index, Gw: w.gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// configureHost sets up the node's end.
func (w *wiring) configureHost(index int, rec *record) error {
	if err := netlink.NeighSet(neighbour(index, rec.Addr, podMAC(rec.Addr))); err != nil {
		return fmt.Errorf("add pod neighbour: %w", err)
	}
	if err := netlink.RouteReplace(w.route(index, rec)); err != nil {
		return fmt.Errorf("add pod route: %w", err)
	}
	return w.setParameters(rec)
}

func (w *wiring) route(index int, rec *record) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Dst: host(rec.Addr), Scope: netlink.SCOPE_LINK, Src: w.gateway.AsSlice()}
}

// detach removes the pair; the pod's end and the node's route go with it.
func detach(hostLink string) error {
	link, err := netlink.LinkByName(hostLink)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", hostLink, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", hostLink, err)
	}
	return nil
}

// hostLinks lists the host ends of ours by name.
func hostLinks() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, link := range links {
		if IsHostLink(link) {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// IsHostLink tells whether a link is the node's end of a pod's.
func IsHostLink(link netlink.Link) bool {
	return link.Type() == "veth" && link.Attrs().HardwareAddr.String() == hostMAC.String()
}

// alive tells whether path still is a network namespace. Its file outlives
// neither the machine's restart (tmpfs) nor the sandbox's removal.
func alive(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

func host(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
}

// RemoveLinks deletes the links of every pod, for uninstalling.
func RemoveLinks() error {
	names, err := hostLinks()
	for _, name := range names {
		err = errors.Join(err, detach(name))
	}
	return err
}
