package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

const (
	// dialTimeout bounds the wait for one target; the next is tried then.
	dialTimeout = 2 * time.Second
	// acceptPause follows a failure to accept, such as no file descriptor left.
	acceptPause = 100 * time.Millisecond
)

type tcpListener struct{ *net.TCPListener }

func (tcpListener) redirected(Targets) {}

func (g *Group) listenTCP(at netip.AddrPort, b *balancer) (tcpListener, error) {
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return tcpListener{}, err
	}
	return tcpListener{listener}, g.run(listener, func() { g.accept(listener, b) })
}

func (g *Group) accept(listener *net.TCPListener, b *balancer) {
	for {
		conn, err := listener.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			g.log.Warn("connections to a service are not accepted for a moment", "address", listener.Addr(), "error", err)
			// Nothing tells when there will be descriptors again.
			time.Sleep(acceptPause)
			continue
		}
		_ = g.run(conn, func() { g.pass(conn, b) })
	}
}

// pass connects a client to a target and copies both ways until both are done.
func (g *Group) pass(client *net.TCPConn, b *balancer) {
	target := dial(client, b)
	if target == nil {
		_ = client.SetLinger(0) // a reset, as for a port where nobody listens
		return
	}
	// Neither end is closed before both ways are done: either side may end its
	// own first and go on reading.
	sent, received := make(chan struct{}), make(chan struct{})
	if g.run(target, func() {
		transfer(client, target)
		close(received)
		<-sent
	}) != nil {
		return
	}
	transfer(target, client)
	close(sent)
	<-received
}

// dial connects to the first target that answers; nil if none does.
func dial(client *net.TCPConn, b *balancer) *net.TCPConn {
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	for i, target := range b.choose(from, time.Now()) {
		conn, err := net.DialTimeout("tcp4", target.String(), dialTimeout)
		if err != nil {
			continue
		}
		if i > 0 {
			b.took(from, target, time.Now())
		}
		return conn.(*net.TCPConn)
	}
	return nil
}

// transfer copies until from has no more, and tells to so. What fails one way
// ends both.
func transfer(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = from.Close()
		_ = to.Close()
		return
	}
	_ = to.CloseWrite()
}
