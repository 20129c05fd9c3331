package relay

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Targets are where a relay sends its clients.
type Targets struct {
	Addrs []netip.AddrPort // taken in turn
	// Affinity is how long a client stays with its target after it last came;
	// 0: not at all.
	Affinity time.Duration
	Sources  []netip.Prefix // clients that are let in; empty: all
}

// Equal tells whether nothing differs.
func (t Targets) Equal(other Targets) bool {
	return t.Affinity == other.Affinity && slices.Equal(t.Addrs, other.Addrs) && slices.Equal(t.Sources, other.Sources)
}

func (t Targets) admit(client netip.Addr) bool {
	return len(t.Sources) == 0 || slices.ContainsFunc(t.Sources, func(p netip.Prefix) bool { return p.Contains(client) })
}

// balancer chooses targets for clients.
type balancer struct {
	mu      sync.Mutex // guards what follows
	targets Targets
	next    int
	stuck   map[netip.Addr]stay
	sweepAt int // number of stays at which to look for those that ended
}

// stay is a client's with its target.
type stay struct {
	target netip.AddrPort
	until  time.Time
}

const fewStays = 1024

func newBalancer(to Targets) *balancer {
	return &balancer{targets: to, stuck: make(map[netip.Addr]stay), sweepAt: fewStays}
}

func (b *balancer) set(to Targets) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.targets = to
	if to.Affinity == 0 {
		clear(b.stuck)
	}
}

// choose lists the targets in the order in which to try them for client; none
// if it is not let in.
func (b *balancer) choose(client netip.Addr, now time.Time) []netip.AddrPort {
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs := b.targets.Addrs
	if len(addrs) == 0 || !b.targets.admit(client) {
		return nil
	}
	first := -1
	if s, ok := b.stuck[client]; ok && now.Before(s.until) {
		first = slices.Index(addrs, s.target)
	}
	if first < 0 {
		first = b.next % len(addrs)
		b.next = first + 1
	}
	b.stick(client, addrs[first], now)
	return slices.Concat(addrs[first:], addrs[:first])
}

// took notes that client ended up at another target than the first chosen.
func (b *balancer) took(client netip.Addr, target netip.AddrPort, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stick(client, target, now)
}

// stick notes where client stays. Call with mu held.
func (b *balancer) stick(client netip.Addr, target netip.AddrPort, now time.Time) {
	if b.targets.Affinity == 0 {
		return
	}
	b.stuck[client] = stay{target, now.Add(b.targets.Affinity)}
	if len(b.stuck) < b.sweepAt {
		return
	}
	for c, s := range b.stuck {
		if now.After(s.until) {
			delete(b.stuck, c)
		}
	}
	b.sweepAt = max(fewStays, 2*len(b.stuck))
}
