package relay

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func group(t *testing.T) *Group {
	g := NewGroup(slog.New(slog.DiscardHandler))
	t.Cleanup(g.Close)
	return g
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// echo answers its clients with its name and what they sent.
func echo(t *testing.T, name string) netip.AddrPort {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				sent, err := io.ReadAll(conn)
				if err == nil {
					_, _ = conn.Write(append([]byte(name+" "), sent...))
				}
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func (r *Relay) address() string {
	if l, ok := r.listener.(tcpListener); ok {
		return l.Addr().String()
	}
	return r.listener.(*udpListener).conn.LocalAddr().String()
}

// ask sends all, closes its side and reads the whole answer.
func ask(t *testing.T, r *Relay, sent []byte) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp", r.address())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(sent); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// TestTCP: what a client sends arrives whole, also when it ends its side first,
// and targets take turns.
func TestTCP(t *testing.T) {
	r, err := group(t).Listen("tcp", anyPort, Targets{Addrs: []netip.AddrPort{echo(t, "a"), echo(t, "b")}})
	must(t, err)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, name := range []string{"a ", "b ", "a "} {
		answer, err := ask(t, r, sent)
		must(t, err)
		if answer != name+string(sent) {
			t.Errorf("%d bytes, beginning with %.2q; want %d from %q", len(answer), answer, len(sent)+2, name)
		}
	}
}

// TestTCPTargetEndsFirst: a target that has said all still hears its client.
func TestTCPTargetEndsFirst(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	r, err := group(t).Listen("tcp", anyPort, Targets{Addrs: []netip.AddrPort{listener.Addr().(*net.TCPAddr).AddrPort()}})
	must(t, err)
	client, err := net.Dial("tcp", r.address())
	must(t, err)
	defer client.Close()
	target, err := listener.Accept()
	must(t, err)
	defer target.Close()
	for _, conn := range []net.Conn{client, target} {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	must(t, target.(*net.TCPConn).CloseWrite())
	if said, err := io.ReadAll(client); err != nil || len(said) > 0 {
		t.Fatalf("the client reads %q, %v", said, err)
	}
	sent := bytes.Repeat([]byte("x"), 1<<20)
	_, err = client.Write(sent)
	must(t, err)
	must(t, client.(*net.TCPConn).CloseWrite())
	if heard, err := io.ReadAll(target); err != nil || !bytes.Equal(heard, sent) {
		t.Errorf("the target hears %d bytes of %d, %v", len(heard), len(sent), err)
	}
}

// TestTCPDeadTarget: a target that refuses is passed over, also by a client
// that stays with one.
func TestTCPDeadTarget(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	dead := listener.Addr().(*net.TCPAddr).AddrPort()
	listener.Close()
	r, err := group(t).Listen("tcp", anyPort, Targets{Addrs: []netip.AddrPort{dead, echo(t, "alive")}, Affinity: time.Hour})
	must(t, err)
	for range 3 {
		if answer, err := ask(t, r, nil); err != nil || answer != "alive " {
			t.Errorf("answer %q, %v", answer, err)
		}
	}
	r.Redirect(Targets{Addrs: []netip.AddrPort{dead}})
	if answer, err := ask(t, r, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("answer %q, %v; want a reset", answer, err)
	}
}

// TestSources: others than those named are not let in.
func TestSources(t *testing.T) {
	to := Targets{Addrs: []netip.AddrPort{echo(t, "a")}, Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	r, err := group(t).Listen("tcp", anyPort, to)
	must(t, err)
	if answer, err := ask(t, r, nil); err == nil {
		t.Errorf("let in: %q", answer)
	}
	to.Sources = append(to.Sources, netip.MustParsePrefix("127.0.0.0/8"))
	r.Redirect(to)
	if answer, err := ask(t, r, nil); err != nil || answer != "a " {
		t.Errorf("answer %q, %v", answer, err)
	}
}

// TestClose: a relay's end stops new connections, the group's end all of them.
func TestClose(t *testing.T) {
	g := NewGroup(slog.New(slog.DiscardHandler))
	r, err := g.Listen("tcp", anyPort, Targets{Addrs: []netip.AddrPort{echo(t, "a")}})
	must(t, err)
	address := r.address()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	// One full round trip, so that the relay has taken this connection.
	_, err = ask(t, r, nil)
	must(t, err)
	r.Close()
	if late, err := net.Dial("tcp", address); err == nil {
		late.Close()
		t.Error("still listening")
	}
	_, err = conn.Write([]byte("x"))
	must(t, err)
	g.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection outlives the group")
	}
	if _, err := g.Listen("tcp", anyPort, Targets{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed group listens: %v", err)
	}
}

// udpEcho answers each packet with its name and the packet.
func udpEcho(t *testing.T, name string) (netip.AddrPort, func()) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(append([]byte(name+" "), buffer[:n]...), from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func() { conn.Close() }
}

func askUDP(t *testing.T, conn net.Conn) string {
	t.Helper()
	buffer := make([]byte, 100)
	for range 3 { // a packet may be lost while its target changes
		_, err := conn.Write([]byte("x"))
		must(t, err)
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		if n, err := conn.Read(buffer); err == nil {
			return string(buffer[:n])
		}
	}
	return "nothing"
}

// TestUDP: a client keeps its target, and gets another when that is gone.
func TestUDP(t *testing.T) {
	a, stopA := udpEcho(t, "a")
	b, _ := udpEcho(t, "b")
	for _, at := range []netip.AddrPort{anyPort, netip.MustParseAddrPort("0.0.0.0:0")} {
		r, err := group(t).Listen("udp", at, Targets{Addrs: []netip.AddrPort{a, b}})
		must(t, err)
		_, port, err := net.SplitHostPort(r.address())
		must(t, err)
		// Answers come from the address that was asked, or this socket would not see them.
		conn, err := net.Dial("udp", "127.0.0.1:"+port)
		must(t, err)
		defer conn.Close()
		for range 3 {
			if got := askUDP(t, conn); got != "a x" {
				t.Fatalf("%s: %q", at, got)
			}
		}
		r.Redirect(Targets{Addrs: []netip.AddrPort{b}})
		if got := askUDP(t, conn); got != "b x" {
			t.Errorf("%s: %q after the change", at, got)
		}
	}
	r, err := group(t).Listen("udp", anyPort, Targets{Addrs: []netip.AddrPort{a, b}})
	must(t, err)
	conn, err := net.Dial("udp", r.address())
	must(t, err)
	defer conn.Close()
	if got := askUDP(t, conn); got != "a x" {
		t.Fatalf("%q", got)
	}
	stopA()
	if got := askUDP(t, conn); got != "b x" {
		t.Errorf("%q after the target's end", got)
	}
}

func TestBalancer(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
	me, you := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	start := time.Unix(1000, 0)
	choose := func(balancer *balancer, client netip.Addr, after time.Duration) netip.AddrPort {
		return balancer.choose(client, start.Add(after))[0]
	}
	balancer := newBalancer(Targets{Addrs: []netip.AddrPort{a, b}, Affinity: time.Minute})
	for _, step := range []struct {
		client netip.Addr
		after  time.Duration
		want   netip.AddrPort
	}{
		{me, 0, a}, {you, 0, b},
		{me, 59 * time.Second, a},  // stays
		{me, 118 * time.Second, a}, // which counts from its last visit
		{you, 61 * time.Second, a}, // was away too long
	} {
		if got := choose(balancer, step.client, step.after); got != step.want {
			t.Errorf("%s after %s: %s, want %s", step.client, step.after, got, step.want)
		}
	}
	balancer.took(me, b, start)
	if got := choose(balancer, me, time.Second); got != b {
		t.Errorf("does not stay where it ended up: %s", got)
	}
	balancer.set(Targets{Addrs: []netip.AddrPort{a}, Affinity: time.Minute})
	if got := choose(balancer, me, time.Second); got != a {
		t.Errorf("stays with a target that is gone: %s", got)
	}
	for i := range 3 * fewStays { // clients that never come again are forgotten
		balancer.choose(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), start.Add(time.Duration(i)*time.Second))
	}
	if kept := len(balancer.stuck); kept > 2*fewStays {
		t.Errorf("%d clients are remembered", kept)
	}
}
