package agent

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"orch/internal/pki"
)

// listen gives an address that answers until the function is called.
func listen(t *testing.T) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String(), func() { listener.Close() }
}

func dialed(t *testing.T, s *servers) string {
	t.Helper()
	conn, err := s.dial(context.Background(), "tcp", "ignored:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.RemoteAddr().String()
}

// The balancer stays with a server as long as that answers, goes on to another
// when it does not, and knows all of them after a restart.
func TestServers(t *testing.T) {
	given, stopGiven := listen(t)
	second, stopSecond := listen(t)
	file := filepath.Join(t.TempDir(), "agent", "servers.json")
	s := newServers(given, file)
	if got := dialed(t, s); got != given {
		t.Errorf("first %s, want the given %s", got, given)
	}
	if links, _ := s.links(); !slices.Equal(links, []string{given}) {
		t.Errorf("links %v before anything was learned", links)
	}
	_, changed := s.links()
	if err := s.learn([]string{second, given}); err != nil {
		t.Fatal(err)
	}
	<-changed
	if links, _ := s.links(); len(links) != 2 {
		t.Errorf("links %v", links)
	}
	stopGiven()
	if got := dialed(t, s); got != second {
		t.Errorf("%s after the first server's death, want %s", got, second)
	}
	if err := s.learn(nil); err != nil {
		t.Fatal(err)
	}
	again := newServers(given, file)
	if got := dialed(t, again); got != second {
		t.Errorf("after a restart %s, want %s", got, second)
	}
	stopSecond()
	if conn, err := again.dial(context.Background(), "tcp", "ignored:1"); err == nil {
		conn.Close()
		t.Error("connected to nobody")
	}
}

// A learned address at which something else answers does not keep the agent from
// the server that it was given.
func TestServersBehindNAT(t *testing.T) {
	now := time.Now()
	ours, err := pki.LoadOrCreateAuthority(t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.LoadOrCreateAuthority(t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	given, stopGiven := listenTLS(t, ours, "127.0.0.1:0")
	foreign, _ := listenTLS(t, other, "127.0.0.1:0")
	s := newServers(given, filepath.Join(t.TempDir(), "servers.json"))
	if err := s.learn([]string{foreign}); err != nil {
		t.Fatal(err)
	}
	dial := s.dialTLS(&tls.Config{RootCAs: ours.Pool(), ServerName: "kubernetes"})
	stopGiven() // for a moment
	if conn, err := dial(t.Context(), "tcp", "ignored:1"); err == nil {
		t.Errorf("connected to %s", conn.RemoteAddr())
		conn.Close()
	}
	listenTLS(t, ours, given)
	conn, err := dial(t.Context(), "tcp", "ignored:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != given || s.candidates()[0] != given {
		t.Errorf("connected to %s, first is %s", got, s.candidates()[0])
	}
}

func listenTLS(t *testing.T, ca *pki.Authority, at string) (address string, stop func()) {
	t.Helper()
	pair, err := ca.Issue(pki.ServingProfile(nil, net.IPv4(127, 0, 0, 1), "cluster.local"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", at, &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = conn.(*tls.Conn).HandshakeContext(t.Context()) }()
		}
	}()
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String(), func() { listener.Close() }
}
