package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"orch/netproxy/kernel"
)

// held is what the kernel has of the node's links, routes and neighbours.
type held struct {
	links      map[string]netlink.Link
	routes     map[netip.Prefix][]netlink.Route
	neighbours map[neighbourKey]netlink.Neigh
}

type neighbourKey struct {
	link int
	addr netip.Addr
}

// look reads the kernel.
func look() (*held, error) {
	h := &held{links: make(map[string]netlink.Link), routes: make(map[netip.Prefix][]netlink.Route), neighbours: make(map[neighbourKey]netlink.Neigh)}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		h.links[l.Attrs().Name] = l
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		to := netip.PrefixFrom(addr, bits)
		h.routes[to] = append(h.routes[to], r)
	}
	neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighbours {
		addr, _ := netip.AddrFromSlice(n.IP.To4())
		h.neighbours[neighbourKey{n.LinkIndex, addr}] = n
	}
	return h, nil
}

// routed tells whether a route is there as wanted.
func (h *held) routed(want *netlink.Route) bool {
	addr, _ := netip.AddrFromSlice(want.Dst.IP.To4())
	bits, _ := want.Dst.Mask.Size()
	return slices.ContainsFunc(h.routes[netip.PrefixFrom(addr, bits)], func(r netlink.Route) bool {
		kind := func(t int) int { // unicast is what a route without a type is
			if t == 0 {
				return unix.RTN_UNICAST
			}
			return t
		}
		// A route without a link stands at the loopback one in the kernel's lists.
		return (want.LinkIndex == 0 || r.LinkIndex == want.LinkIndex) && r.Src.Equal(want.Src) && kind(r.Type) == kind(want.Type) && r.Gw == nil
	})
}

// Mend brings back what somebody took of the links of pods, and tells what that
// was. A pod whose link is gone gets another, with its address.
func (s *Server) Mend() (mended []string, err error) {
	h, err := look()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	ids := make([]string, 0, len(s.sandboxes))
	for id := range s.sandboxes {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	var errs []error
	for _, id := range ids {
		what, err := s.mendSandbox(id, h)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod network of %s: %w", id, err))
		}
		mended = append(mended, what...)
	}
	return mended, errors.Join(errs...)
}

// mendSandbox does so for one. It looks again at what it finds amiss once nobody
// else is at work on the sandbox.
func (s *Server) mendSandbox(id string, h *held) ([]string, error) {
	s.mu.Lock()
	rec := s.sandboxes[id]
	s.mu.Unlock()
	if rec == nil || s.wiring.intact(rec, h) {
		return nil, nil
	}
	defer s.busy.lock(id)()
	s.mu.Lock()
	rec = s.sandboxes[id]
	s.mu.Unlock()
	if rec == nil || !alive(rec.NetNS) {
		return nil, nil
	}
	h, err := look()
	if err != nil || s.wiring.intact(rec, h) {
		return nil, err
	}
	if h.links[rec.HostLink] == nil {
		return []string{"link of " + rec.Pod}, s.wiring.attach(rec)
	}
	return s.wiring.mend(rec, h)
}

// intact tells whether a sandbox's end at the node is as it should be.
func (w *wiring) intact(rec *record, h *held) bool {
	link := h.links[rec.HostLink]
	if link == nil || link.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	index := link.Attrs().Index
	return h.routed(w.route(index, rec)) && h.knows(index, rec) && w.setParameters(rec) == nil
}

func (h *held) knows(index int, rec *record) bool {
	n, found := h.neighbours[neighbourKey{index, rec.Addr}]
	return found && n.State&netlink.NUD_PERMANENT != 0 && n.HardwareAddr.String() == podMAC(rec.Addr).String()
}

// mend sets anew what is amiss of a link that is there.
func (w *wiring) mend(rec *record, h *held) (mended []string, err error) {
	link := h.links[rec.HostLink]
	index := link.Attrs().Index
	if link.Attrs().Flags&net.FlagUp == 0 {
		mended = append(mended, "state of the link of "+rec.Pod)
		if err := netlink.LinkSetUp(link); err != nil {
			return mended, fmt.Errorf("set %s up: %w", rec.HostLink, err)
		}
	}
	if !h.knows(index, rec) {
		mended = append(mended, "neighbour entry of "+rec.Pod)
	}
	if !h.routed(w.route(index, rec)) {
		mended = append(mended, "route to "+rec.Pod)
	}
	return mended, w.configureHost(index, rec)
}

// setParameters keeps the pod to its own address: what comes from its link has a
// source to which the way leads through it, or goes no further. Pods have IPv4
// alone, so the node does not listen to anything else there, such as a router
// that a pod says it is.
func (w *wiring) setParameters(rec *record) error {
	if err := kernel.Set("net/ipv4/conf/"+rec.HostLink+"/rp_filter", "1"); err != nil {
		return err
	}
	err := kernel.Set("net/ipv6/conf/"+rec.HostLink+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}
