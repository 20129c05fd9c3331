package cni

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ServiceAddresses gives the node addresses of services, on the anchor's link:
// for a proxy that listens on them. They last until Anchor.Ensure.
type ServiceAddresses struct {
	link  string
	cidr  netip.Prefix
	given map[netip.Addr]bool
}

// NewServiceAddresses uses the link of that name. Addresses outside of cidr may
// be the machine's own.
func NewServiceAddresses(link string, cidr netip.Prefix) *ServiceAddresses {
	return &ServiceAddresses{link: link, cidr: cidr, given: make(map[netip.Addr]bool)}
}

// Add does nothing if the machine has the address already.
func (s *ServiceAddresses) Add(addr netip.Addr) error {
	if !s.cidr.Contains(addr) && localAddress(addr) {
		return nil
	}
	link, err := netlink.LinkByName(s.link)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.link, err)
	}
	err = netlink.AddrAdd(link, &netlink.Addr{IPNet: host(addr)})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add %s to %s: %w", addr, s.link, err)
	}
	s.given[addr] = true
	return nil
}

// Remove takes away only what Add gave.
func (s *ServiceAddresses) Remove(addr netip.Addr) error {
	if !s.given[addr] {
		return nil
	}
	link, err := netlink.LinkByName(s.link)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.link, err)
	}
	if err := netlink.AddrDel(link, &netlink.Addr{IPNet: host(addr)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %s from %s: %w", addr, s.link, err)
	}
	delete(s.given, addr)
	return nil
}
