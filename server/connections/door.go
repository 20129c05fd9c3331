// Package connections bounds what strangers may hold of the server's port: how
// many connections, and what may come over one besides requests.
package connections

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	goruntime "runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"orch/server/fairness"
)

// Limits of the connections of strangers: of all who have not shown the
// certificate of a node, a server or an administrator.
type Limits struct {
	Strangers  int // in all
	PerAddress int // from one address
	// PerPeer is how many connections of one node or administrator do not count as
	// strangers'.
	PerPeer int
	// Probation is how many more may get as far as their certificate, for a node
	// may be among them.
	Probation int
}

// DefaultLimits leave most of the files that the process may open to nodes,
// servers and its own work.
func DefaultLimits() Limits {
	most := 4096
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		most = int(min(uint64(most), files.Cur/4))
	}
	return Limits{Strangers: most, PerAddress: most/4 + 1, PerPeer: 256, Probation: 64}
}

// Door lets connections in.
type Door struct {
	limits Limits
	peerOf func(tls.ConnectionState) string
	log    *slog.Logger
	// handshakes are what a connection costs most: few are computed at once, and
	// addresses take turns.
	handshakes *fairness.Level

	mu         sync.Mutex // guards everything below, and the standing of connections
	strangers  int
	byAddress  map[netip.Addr]int
	byPeer     map[string]int
	probation  int
	turnedAway int       // since the last line about it
	reported   time.Time // when that was
}

// NewDoor makes a door; peerOf names the peer that a certificate is of, "": it
// is a stranger.
func NewDoor(limits Limits, peerOf func(tls.ConnectionState) string, log *slog.Logger) *Door {
	return &Door{
		limits: limits, peerOf: peerOf, log: log.With("component", "connections"),
		byAddress: make(map[netip.Addr]int), byPeer: make(map[string]int),
		handshakes: fairness.NewLevel("handshakes", fairness.Limits{
			Seats: goruntime.GOMAXPROCS(0), Queued: limits.Strangers, FlowQueued: limits.PerAddress, Patience: headerTime,
		}),
	}
}

// standing is what a connection counts as.
type standing int

const (
	closed    standing = iota // it counts no more
	stranger                  // within the limits
	probation                 // beyond them
	known                     // a node's, a server's, an administrator's
)

// conn is a connection that went through a door.
type conn struct {
	net.Conn
	door     *Door
	address  netip.Addr
	standing standing // guarded by door.mu
	peer     string   // where it is known; guarded by door.mu
	// computing is true while the server computes its part of the handshake. The
	// goroutine of the handshake alone uses it until that has ended.
	computing bool
}

// Listen gives a listener that lets in what the limits allow.
func (d *Door) Listen(inner net.Listener) net.Listener { return &listener{inner, d} }

type listener struct {
	net.Listener
	door *Door
}

// Accept closes what is too much and waits for the next one.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, door: l.door, address: addressOf(accepted)}
		if l.door.enter(c) {
			boundUnsent(accepted)
			return c, nil
		}
		accepted.Close()
	}
}

func addressOf(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// unsent is how much of what was written may wait in the kernel for a peer that
// does not read; else it would be megabytes for each connection.
const unsent = 256 << 10

func boundUnsent(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		// A kernel that cannot do it only has more memory to lose.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
	}
}

func (d *Door) enter(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.strangers < d.limits.Strangers && d.byAddress[c.address] < d.limits.PerAddress:
		c.standing = stranger
		d.strangers++
		d.byAddress[c.address]++
	case d.probation < d.limits.Probation:
		c.standing = probation
		d.probation++
	default:
		d.report(c.address)
		return false
	}
	return true
}

// leave takes c out of the counts; d.mu is held.
func (d *Door) leave(c *conn) {
	switch c.standing {
	case stranger:
		d.strangers--
		if d.byAddress[c.address]--; d.byAddress[c.address] == 0 {
			delete(d.byAddress, c.address)
		}
	case probation:
		d.probation--
	case known:
		if d.byPeer[c.peer]--; d.byPeer[c.peer] == 0 {
			delete(d.byPeer, c.peer)
		}
	}
	c.standing = closed
}

// reportEvery is the time between two lines about connections that are too many.
const reportEvery = time.Minute

// report counts one that was turned away; d.mu is held.
func (d *Door) report(address netip.Addr) {
	d.turnedAway++
	if now := time.Now(); now.Sub(d.reported) >= reportEvery {
		d.log.Warn("too many connections, further ones are turned away", "last", address, "count", d.turnedAway,
			"strangers", d.strangers, "from it", d.byAddress[address])
		d.turnedAway, d.reported = 0, now
	}
}

// compute waits for the turn to compute a handshake. It ends with the next Write,
// which sends what was computed, or when there is nothing to send.
func (c *conn) compute(ctx context.Context) error {
	if err := c.door.handshakes.Acquire(ctx, c.address.String()); err != nil {
		return fmt.Errorf("wait for the handshake: %w", err)
	}
	c.computing = true
	return nil
}

func (c *conn) computed() {
	if c.computing {
		c.computing = false
		c.door.handshakes.Release()
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.computed()
	return c.Conn.Write(p)
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.computed()
	return c.Conn.Read(p)
}

// Close takes c out of the counts.
func (c *conn) Close() error {
	c.door.mu.Lock()
	c.door.leave(c)
	c.door.mu.Unlock()
	return c.Conn.Close()
}

var errTooMany = errors.New("too many connections of clients without the certificate of a node, a server or an administrator")

// Check makes connections under config go through the door a second time, when
// they have shown their certificates.
func (d *Door) Check(config *tls.Config) *tls.Config {
	outer := config.Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen := config
		if config.GetConfigForClient != nil {
			own, err := config.GetConfigForClient(hello)
			if err != nil {
				return nil, err
			}
			if own != nil {
				chosen = own
			}
		}
		c, ok := hello.Conn.(*conn)
		if !ok {
			return chosen, nil
		}
		if err := c.compute(hello.Context()); err != nil {
			return nil, err
		}
		checked := chosen.Clone()
		checked.GetConfigForClient = nil
		checked.VerifyConnection = func(state tls.ConnectionState) error { return d.identified(c, state) }
		return checked, nil
	}
	return outer
}

func (d *Door) identified(c *conn, state tls.ConnectionState) error {
	peer := d.peerOf(state)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case c.standing == closed: // it timed out just now
	case peer != "" && d.byPeer[peer] < d.limits.PerPeer:
		d.leave(c)
		c.standing, c.peer = known, peer
		d.byPeer[peer]++
	case c.standing == probation:
		d.report(c.address)
		return errTooMany
	}
	return nil
}
