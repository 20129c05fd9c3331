package agent

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
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
