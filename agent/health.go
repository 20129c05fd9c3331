package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"
)

// health is how the server answers that the API client is connected to. One that
// hangs, or is cut off from most others, keeps its connections, and yet can do
// nothing for this node: its lease would end.
type health struct {
	failing  time.Time     // since then no request was answered; zero: the last one was
	patience time.Duration // with that; zero: patienceFirst
	left     time.Time     // when the server before was left
}

const (
	patienceFirst = 3 * time.Second // a change of leaders takes less
	// patienceLast is the most, where all servers are alike.
	patienceLast = time.Minute
)

// answered notes a request that was.
func (h *health) answered() { h.failing, h.patience = time.Time{}, 0 }

// failed notes a request that was not, and tells whether to leave the server.
func (h *health) failed(began, now time.Time) bool {
	if began.Before(h.left) {
		return false // that was another server's
	}
	if h.failing.IsZero() {
		h.failing = began
	}
	patience := max(h.patience, patienceFirst)
	if now.Sub(h.failing) < patience {
		return false
	}
	*h = health{left: now, patience: min(2*patience, patienceLast)}
	return true
}

// observed is the API client's way to the servers.
type observed struct {
	*http.Transport
	servers *servers
	log     *slog.Logger
}

// RoundTrip sends a request, and moves to another server when this one has
// answered none for a while.
func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	response, err := o.Transport.RoundTrip(r)
	switch {
	case errors.Is(err, context.Canceled): // by us
	case err != nil || response.StatusCode >= http.StatusInternalServerError:
		if from, to := o.servers.failed(began, time.Now()); from != "" {
			o.log.Warn("this server does not do its work: going to another one", "component", "agent", "from", from, "to", to)
		}
	case fresh(r):
		o.servers.answered()
	}
	return response, err
}

// fresh tells whether a server that is cut off from the others could not answer
// the request: it serves old state to those who take any.
func fresh(r *http.Request) bool {
	query := r.URL.Query()
	return !query.Has("watch") && !query.Has("resourceVersion")
}

func (s *servers) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.answered()
}

// failed notes that a request was not answered. When there have been enough, it
// ends all connections of the API client, and the next server is asked first.
func (s *servers) failed(began, now time.Time) (from, to string) {
	s.mu.Lock()
	ring := s.ring()
	if !s.health.failed(began, now) || len(ring) < 2 {
		s.mu.Unlock()
		return "", ""
	}
	from = s.current
	to = ring[(slices.Index(ring, from)+1)%len(ring)]
	s.current = to
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, conn := range open {
		_ = conn.Close() // watches, too, begin anew elsewhere
	}
	return from, to
}

// track keeps the connection until it is closed.
func (s *servers) track(conn net.Conn) net.Conn {
	t := &tracked{Conn: conn, servers: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[t] = true
	return t
}

// tracked is a connection of the API client.
type tracked struct {
	net.Conn
	servers *servers
}

func (t *tracked) Close() error {
	t.servers.mu.Lock()
	delete(t.servers.open, t)
	t.servers.mu.Unlock()
	return t.Conn.Close()
}
