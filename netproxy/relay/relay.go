// Package relay passes on what reaches an address of this machine, TCP connections and UDP packets, to one of several others.
package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// Group owns relays and all that runs for them.
type Group struct {
	log     *slog.Logger
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	open   map[io.Closer]bool
	closed bool
}

// NewGroup returns a Group without relays.
func NewGroup(log *slog.Logger) *Group { return &Group{log: log, open: make(map[io.Closer]bool)} }

// Relay listens at one address.
type Relay struct {
	balancer *balancer
	listener interface {
		io.Closer
		// redirected ends what would still go to former targets.
		redirected(Targets)
	}
}

// Listen starts a relay for protocol tcp or udp. An unspecified address means
// every one of the machine.
func (g *Group) Listen(protocol string, at netip.AddrPort, to Targets) (*Relay, error) {
	relay := &Relay{balancer: newBalancer(to)}
	var err error
	switch protocol {
	case "tcp":
		relay.listener, err = g.listenTCP(at, relay.balancer)
	case "udp":
		relay.listener, err = g.listenUDP(at, relay.balancer)
	default:
		err = errors.New("only tcp and udp can be relayed")
	}
	if err != nil {
		return nil, fmt.Errorf("relay %s %s: %w", protocol, at, err)
	}
	return relay, nil
}

// Redirect sends new clients to other targets. TCP connections that exist stay
// as they are; UDP has no end of connection, so its clients are sent on to the
// new targets when theirs is gone.
func (r *Relay) Redirect(to Targets) {
	r.balancer.set(to)
	r.listener.redirected(to)
}

// Close ends listening; TCP connections that exist go on until the group ends.
func (r *Relay) Close() { _ = r.listener.Close() }

// Close ends all relays and connections, and returns when all has ended.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	for c := range g.open {
		_ = c.Close()
	}
	g.mu.Unlock()
	g.running.Wait()
}

// run starts serve, which ends when c is closed; c is closed after it, too.
func (g *Group) run(c io.Closer, serve func()) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		_ = c.Close()
		return net.ErrClosed
	}
	g.open[c] = true
	g.running.Go(func() {
		defer g.release(c)
		serve()
	})
	return nil
}

func (g *Group) release(c io.Closer) {
	_ = c.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, c)
}
