package cni

import (
	"errors"
	"net/netip"
)

// errPoolFull means every address of the pod range is taken.
var errPoolFull = errors.New("no free address in the pod range")

// pool hands out the addresses of one range in turn, so that an address rests
// as long as possible between two pods. The network's first two addresses (its
// name and the gateway) and the last one (broadcast) are never given.
// Not safe for concurrent use.
type pool struct {
	prefix netip.Prefix
	last   netip.Addr // the address given most recently
	used   map[netip.Addr]string
}

func newPool(prefix netip.Prefix, last netip.Addr) *pool {
	prefix = prefix.Masked()
	p := &pool{prefix: prefix, used: make(map[netip.Addr]string)}
	p.last = p.gateway()
	if p.assignable(last) {
		p.last = last
	}
	return p
}

// gateway is the node's own address in the range.
func (p *pool) gateway() netip.Addr { return p.prefix.Addr().Next() }

// assignable tells whether addr may be given to a pod.
func (p *pool) assignable(addr netip.Addr) bool {
	return p.prefix.Contains(addr) && addr != p.prefix.Addr() && addr != p.gateway() &&
		(p.prefix.Contains(addr.Next()) || p.prefix.Bits() >= addr.BitLen()-1)
}

// mark records that id holds addr, which may lie outside the range if the
// range was changed since.
func (p *pool) mark(addr netip.Addr, id string) { p.used[addr] = id }

// allocate gives the next free address after the last one given.
func (p *pool) allocate(id string) (netip.Addr, error) {
	addr := p.last
	for {
		addr = addr.Next()
		if !p.prefix.Contains(addr) {
			addr = p.prefix.Addr()
		}
		if _, taken := p.used[addr]; !taken && p.assignable(addr) {
			p.used[addr] = id
			p.last = addr
			return addr, nil
		}
		if addr == p.last {
			return netip.Addr{}, errPoolFull
		}
	}
}

// release frees addr if id still holds it.
func (p *pool) release(addr netip.Addr, id string) {
	if p.used[addr] == id {
		delete(p.used, addr)
	}
}
