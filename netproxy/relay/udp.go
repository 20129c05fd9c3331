package relay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
)

// udpIdle is how long a client keeps its target without a packet in either
// direction; the kernel's own connection tracking waits as long.
const udpIdle = 2 * time.Minute

// maxDatagram is what an IPv4 packet can carry.
const maxDatagram = 65507

// udpListener relays packets: each client has a socket of its own towards its
// target, from which answers are told apart.
type udpListener struct {
	group    *Group
	balancer *balancer
	at       netip.Addr
	conn     *net.UDPConn
	packets  *ipv4.PacketConn

	mu       sync.Mutex // guards sessions
	sessions map[udpClient]*udpSession
}

// udpClient is who sent, and to which of this machine's addresses: answers must
// come from there.
type udpClient struct {
	from netip.AddrPort
	to   netip.Addr
}

type udpSession struct {
	*net.UDPConn
	target netip.AddrPort
	active atomic.Int64 // time of the last packet either way, Unix nanoseconds
}

func (g *Group) listenUDP(at netip.AddrPort, b *balancer) (*udpListener, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	u := &udpListener{group: g, balancer: b, at: at.Addr(), conn: conn, packets: ipv4.NewPacketConn(conn), sessions: make(map[udpClient]*udpSession)}
	if at.Addr().IsUnspecified() {
		if err := u.packets.SetControlMessage(ipv4.FlagDst, true); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return u, g.run(conn, u.serve)
}

// Close ends listening and all sessions.
func (u *udpListener) Close() error {
	err := u.conn.Close()
	u.keep(func(*udpSession) bool { return false })
	return err
}

func (u *udpListener) redirected(to Targets) {
	u.keep(func(s *udpSession) bool { return slices.Contains(to.Addrs, s.target) })
}

// keep ends the sessions that stay does not want.
func (u *udpListener) keep(stay func(*udpSession) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for client, session := range u.sessions {
		if !stay(session) {
			_ = session.Close()
			delete(u.sessions, client)
		}
	}
}

func (u *udpListener) serve() {
	defer u.keep(func(*udpSession) bool { return false })
	buffer := make([]byte, maxDatagram)
	for {
		n, control, from, err := u.packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		client := udpClient{from.(*net.UDPAddr).AddrPort(), u.at}
		if control != nil {
			client.to, _ = netip.AddrFromSlice(control.Dst.To4())
		}
		if session := u.session(client); session != nil {
			session.active.Store(time.Now().UnixNano())
			// What the target's machine refused is lost, like any other packet.
			_, _ = session.Write(buffer[:n])
		}
	}
}

// session is the client's, made if need be; nil if nobody is to serve it.
func (u *udpListener) session(client udpClient) *udpSession {
	u.mu.Lock()
	defer u.mu.Unlock()
	if session := u.sessions[client]; session != nil {
		return session
	}
	targets := u.balancer.choose(client.from.Addr(), time.Now())
	if len(targets) == 0 {
		return nil
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(targets[0]))
	if err != nil {
		u.group.log.Warn("packets to a service are lost", "address", u.conn.LocalAddr(), "endpoint", targets[0], "error", err)
		return nil
	}
	session := &udpSession{UDPConn: conn, target: targets[0]}
	if u.group.run(conn, func() { u.answer(client, session) }) != nil {
		return nil
	}
	u.sessions[client] = session
	return session
}

// answer brings a target's packets back to its client until neither has sent
// anything for a while.
func (u *udpListener) answer(client udpClient, session *udpSession) {
	defer u.forget(client, session)
	buffer := make([]byte, maxDatagram)
	var control *ipv4.ControlMessage
	if u.at.IsUnspecified() {
		control = &ipv4.ControlMessage{Src: client.to.AsSlice()}
	}
	to := net.UDPAddrFromAddrPort(client.from)
	for {
		_ = session.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := session.Read(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(time.Unix(0, session.active.Load())) >= udpIdle {
				return
			}
			continue
		case err != nil: // closed, or refused by the target: choose anew
			return
		}
		session.active.Store(time.Now().UnixNano())
		_, _ = u.packets.WriteTo(buffer[:n], control, to)
	}
}

func (u *udpListener) forget(client udpClient, session *udpSession) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions[client] == session {
		delete(u.sessions, client)
	}
}
