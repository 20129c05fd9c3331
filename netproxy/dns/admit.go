package dns

import (
	"net"
	"net/netip"
	"sync"
)

// Queries that are answered from memory take no time. Those that wait for others
// are bounded, for a pod that asks for what nobody answers must not take names
// away from all.
const (
	queriesMax       = 2048 // on their way at once
	queriesOfOne     = 256  // of one client
	connectionsMax   = 512  // by TCP
	connectionsOfOne = 32   // of one client
)

// admission counts what is going on, in all and by client.
type admission struct {
	max, ofOne int

	mu  sync.Mutex // guards what follows
	all int
	by  map[netip.Addr]int
}

func newAdmission(max, ofOne int) *admission {
	return &admission{max: max, ofOne: ofOne, by: make(map[netip.Addr]int)}
}

// enter tells whether one more may begin; then leave ends it.
func (a *admission) enter(client netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all >= a.max || a.by[client] >= a.ofOne {
		return false
	}
	a.all++
	a.by[client]++
	return true
}

func (a *admission) leave(client netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all--
	if a.by[client]--; a.by[client] == 0 {
		delete(a.by, client)
	}
}

func clientOf(addr net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(addr.String())
	return at.Addr()
}

// boundedListener closes connections beyond what is admitted.
type boundedListener struct {
	net.Listener
	admission *admission
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(conn.RemoteAddr())
		if l.admission.enter(client) {
			return &admitted{Conn: conn, leave: sync.OnceFunc(func() { l.admission.leave(client) })}, nil
		}
		conn.Close()
	}
}

type admitted struct {
	net.Conn
	leave func()
}

func (c *admitted) Close() error {
	c.leave()
	return c.Conn.Close()
}
