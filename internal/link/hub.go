// Package link carries HTTP from the servers to the agents over connections
// that the agents open, so that nodes behind NAT need no inbound port: inside
// one TLS connection (ALPN "orch-agent") the server opens yamux streams and the
// agent serves HTTP on them.
package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Protocol is the ALPN name of the link.
const Protocol = "orch-agent"

const (
	// keepAlive finds dead peers; it is also what an idle link costs.
	keepAlive = 30 * time.Second
	// reconnectWait is how long Dial waits for a node that is not there: agents
	// come back within it after a server restart.
	reconnectWait = 3 * time.Second
	// answerTime is how long a node may take to begin its answer.
	answerTime = time.Minute
)

// NotConnectedError says that no agent of the node is linked to this server.
type NotConnectedError struct{ Node string }

func (e *NotConnectedError) Error() string {
	return fmt.Sprintf("node %s is not connected", e.Node)
}

// Hub is the server's end: the newest session of each node.
type Hub struct {
	// Revoked tells which certificates of nodes are turned away; nil: none. Set
	// before the first connection.
	Revoked func(*x509.Certificate) bool

	mu       sync.Mutex // guards everything below
	sessions map[string]*yamux.Session
	shown    map[*yamux.Session]*x509.Certificate // by which a session was let in
	arrived  map[string]chan struct{}             // closed when the node connects; made by those who wait
	proxies  map[string]*http.Transport
	closed   bool
}

// NewHub gives a hub without nodes.
func NewHub() *Hub {
	return &Hub{
		sessions: make(map[string]*yamux.Session),
		shown:    make(map[*yamux.Session]*x509.Certificate),
		arrived:  make(map[string]chan struct{}),
		proxies:  make(map[string]*http.Transport),
	}
}

// ServeTLS serves one agent's connection until it ends. It is for
// http.Server.TLSNextProto[link.Protocol]. A peer without the verified
// certificate of a node is turned away.
func (h *Hub) ServeTLS(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	state := conn.ConnectionState()
	node, err := nodeOf(state.VerifiedChains)
	if err != nil || h.Revoked != nil && h.Revoked(state.PeerCertificates[0]) {
		conn.Close()
		return
	}
	h.serve(node, conn, state.PeerCertificates[0])
}

// Recheck ends the link of a node whose certificate was revoked meanwhile.
func (h *Hub) Recheck(node string) {
	h.mu.Lock()
	session := h.sessions[node]
	cert := h.shown[session]
	h.mu.Unlock()
	if cert != nil && h.Revoked != nil && h.Revoked(cert) {
		session.Close()
	}
}

// nodeOf is the node that a verified client certificate stands for.
func nodeOf(chains [][]*x509.Certificate) (string, error) {
	if len(chains) == 0 {
		return "", errors.New("no client certificate")
	}
	subject := chains[0][0].Subject
	name, ok := strings.CutPrefix(subject.CommonName, "system:node:")
	if !ok || name == "" || !slices.Contains(subject.Organization, "system:nodes") {
		return "", fmt.Errorf("certificate of %q is not a node's", subject.CommonName)
	}
	return name, nil
}

// ServeConn serves the connection of an authenticated node until it ends.
func (h *Hub) ServeConn(node string, conn net.Conn) { h.serve(node, conn, nil) }

func (h *Hub) serve(node string, conn net.Conn, shown *x509.Certificate) {
	session, err := yamux.Client(newMetered(conn), config())
	if err != nil {
		conn.Close()
		return
	}
	if !h.attach(node, session, shown) {
		session.Close()
		return
	}
	h.Recheck(node) // it may have been revoked since it was looked at
	// Servers open streams, nodes never do: one that tries has no business here.
	_, _ = session.AcceptStream() // or the session ended
	session.Close()
	h.detach(node, session)
}

// attach makes session the node's; an older one belongs to a connection that
// the agent has given up.
func (h *Hub) attach(node string, session *yamux.Session, shown *x509.Certificate) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	if old := h.sessions[node]; old != nil {
		old.Close()
	}
	h.sessions[node] = session
	if shown != nil {
		h.shown[session] = shown
	}
	if waiting := h.arrived[node]; waiting != nil {
		close(waiting)
		delete(h.arrived, node)
	}
	return true
}

func (h *Hub) detach(node string, session *yamux.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.shown, session)
	if h.sessions[node] != session {
		return
	}
	delete(h.sessions, node)
	if t := h.proxies[node]; t != nil {
		t.CloseIdleConnections()
		delete(h.proxies, node)
	}
}

// session is the node's session, or a channel that tells when there is one.
func (h *Hub) session(node string) (*yamux.Session, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[node]; s != nil && !s.IsClosed() {
		return s, nil
	}
	if h.arrived[node] == nil {
		h.arrived[node] = make(chan struct{})
	}
	return nil, h.arrived[node]
}

// Dial opens a connection to the node's HTTP server. A node that is not
// connected gets a moment to come back, then the error is a NotConnectedError.
func (h *Hub) Dial(ctx context.Context, node string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, reconnectWait, &NotConnectedError{node})
	defer cancel()
	for {
		session, arrived := h.session(node)
		if session != nil {
			stream, err := session.OpenStream()
			if err == nil {
				return stream, nil
			}
			if !session.IsClosed() {
				return nil, fmt.Errorf("open stream to node %s: %w", node, err)
			}
			continue // it broke under us: wait for the next one
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Transport gives the HTTP transport to a node; any host name in the request's
// URL will do, the scheme is http.
func (h *Hub) Transport(node string) (http.RoundTripper, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.proxies[node]; t != nil {
		return t, nil
	}
	t := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx, node) },
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     time.Minute,
		// A node's word: it may neither keep silent for ever nor talk without end.
		ResponseHeaderTimeout: answerTime, MaxResponseHeaderBytes: 64 << 10,
	}
	if h.sessions[node] != nil {
		h.proxies[node] = t // forgotten with the session
	}
	return t, nil
}

// Connected tells whether an agent of the node is linked to this server.
func (h *Hub) Connected(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[node] != nil
}

// Close ends all sessions and takes no more. It is for
// http.Server.RegisterOnShutdown, which would wait for them otherwise.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, s := range h.sessions {
		s.Close()
	}
}

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.KeepAliveInterval = keepAlive
	c.MaxStreamWindowSize = 512 << 10 // logs and copies over slow lines; what a node can make a server hold for each
	c.LogOutput = io.Discard          // every error also reaches the caller
	return c
}
