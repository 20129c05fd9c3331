package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"orch/internal/pki"
)

// ALPN names of what servers say to each other.
const (
	ProtocolRaft  = "orch-raft"
	ProtocolStore = "orch-store"
)

// Peers carries connections between the servers over their API port. Both ends
// show certificates of a CA that signs for servers alone.
type Peers struct {
	config *tls.Config
	layers map[string]*PeerLayer
}

// NewPeers serves the server that others reach at address, "host:port".
func NewPeers(address string, own *pki.Source, servers *x509.CertPool) *Peers {
	p := &Peers{
		config: &tls.Config{
			MinVersion:           tls.VersionTLS13,
			GetCertificate:       own.GetCertificate,
			GetClientCertificate: own.GetClientCertificate,
			ClientAuth:           tls.RequireAndVerifyClientCert,
			ClientCAs:            servers,
			RootCAs:              servers,
			// Every server has this name, so that addresses may change.
			ServerName: pki.PeerName,
		},
		layers: make(map[string]*PeerLayer),
	}
	for _, protocol := range []string{ProtocolRaft, ProtocolStore} {
		p.layers[protocol] = &PeerLayer{
			peers: p, protocol: protocol, address: address, accepted: make(chan net.Conn), closed: make(chan struct{}),
		}
	}
	return p
}

// Layer is the connections of one protocol.
func (p *Peers) Layer(protocol string) *PeerLayer { return p.layers[protocol] }

// Accept makes an HTTP server hand over the connections of other servers. Those
// meet the peers' own TLS rules, all others the server's.
func (p *Peers) Accept(server *http.Server) {
	rest := server.TLSConfig
	outer := rest.Clone()
	outer.NextProtos = append(slices.Clone(rest.NextProtos), ProtocolRaft, ProtocolStore)
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		for protocol := range p.layers {
			if slices.Contains(hello.SupportedProtos, protocol) {
				config := p.config.Clone()
				config.NextProtos = []string{protocol}
				return config, nil
			}
		}
		return rest, nil
	}
	server.TLSConfig = outer
	for protocol, layer := range p.layers {
		server.TLSNextProto[protocol] = layer.serve
	}
}

// Close ends all connections that were accepted, and takes no more.
func (p *Peers) Close() {
	for _, layer := range p.layers {
		layer.Close()
	}
}

// PeerLayer is a raft.StreamLayer.
type PeerLayer struct {
	peers    *Peers
	protocol string
	address  string
	accepted chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

// serve hands a connection to Accept's caller and returns when it is closed, for
// the HTTP server closes it then.
func (l *PeerLayer) serve(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	c := &peerConn{Conn: conn, closed: make(chan struct{})}
	defer c.Close()
	select {
	case l.accepted <- c:
	case <-l.closed:
		return
	}
	select {
	case <-c.closed:
	case <-l.closed:
	}
}

// Accept waits for a connection of another server.
func (l *PeerLayer) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and all connections that it gave.
func (l *PeerLayer) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is where other servers reach this one.
func (l *PeerLayer) Addr() net.Addr { return peerAddress(l.address) }

// Dial connects to the server at address.
func (l *PeerLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	config := l.peers.config.Clone()
	config.NextProtos = []string{l.protocol}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(address), config)
	if err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return nil, fmt.Errorf("%s is a server of another cluster: %w", address, err)
		}
		return nil, err
	}
	return conn, nil
}

type peerAddress string

func (peerAddress) Network() string  { return "tcp" }
func (a peerAddress) String() string { return string(a) }

type peerConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

// Close may be called more than once.
func (c *peerConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
