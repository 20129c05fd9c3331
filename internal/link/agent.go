package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sync/errgroup"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// stable is how long a session must have lasted for the back-off to start over.
	stable = 10 * time.Second
)

// Agent is the node's end of the link to one server.
type Agent struct {
	Address string // "host:port" of the server
	// Also may lead to the same server where Address does not, through NAT or a
	// balancer; it does when the certificate there is good for Address's host.
	Also    string
	TLS     *tls.Config // trusts the cluster's CA and shows the node's certificate
	Handler http.Handler
	Logger  *slog.Logger // nil: slog.Default

	// Dial replaces the network; nil: a net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Run keeps the link up until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	log := a.Logger
	if log == nil {
		log = slog.Default()
	}
	log = log.With("component", "link", "server", a.Address)
	retry, lost := firstRetry, false
	for {
		start := time.Now()
		err := a.serveOnce(ctx, func() {
			if lost {
				log.Info("connected to server again")
				lost = false
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if !lost {
			log.Warn("connection to server lost, trying again", "error", err)
			lost = true
		}
		if time.Since(start) > stable {
			retry = firstRetry
		}
		if !sleep(ctx, retry+rand.N(retry/2)) {
			return nil
		}
		retry = min(2*retry, lastRetry)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// serveOnce connects and serves until the session ends; the error says why.
func (a *Agent) serveOnce(ctx context.Context, connected func()) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	session, err := yamux.Server(conn, config())
	if err != nil {
		conn.Close()
		return fmt.Errorf("start session: %w", err)
	}
	connected()
	server := &http.Server{Handler: a.Handler, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(session) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-session.CloseChan():
		}
		// Close ends streams in flight too; hijacked ones end with the session.
		return errors.Join(server.Close(), session.Close(), errSessionEnded)
	})
	return group.Wait()
}

var errSessionEnded = errors.New("session ended")

func (a *Agent) connect(ctx context.Context) (net.Conn, error) {
	if a.Also == "" || a.Also == a.Address {
		return a.connectTo(ctx, a.Address, a.TLS.ServerName, dialTime)
	}
	conn, err := a.connectTo(ctx, a.Address, a.TLS.ServerName, firstDialTime)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	conn, alsoErr := a.connectTo(ctx, a.Also, "", dialTime)
	if alsoErr != nil {
		return nil, errors.Join(err, fmt.Errorf("by way of %s: %w", a.Also, alsoErr))
	}
	return conn, nil
}

// How long an address may take to answer.
const (
	dialTime      = 10 * time.Second
	firstDialTime = 3 * time.Second // where there is another
)

// connectTo makes the link through target to the server that has a certificate
// for serverName; "": for Address's host.
func (a *Agent) connectTo(ctx context.Context, target, serverName string, patience time.Duration) (net.Conn, error) {
	config := a.TLS.Clone()
	config.NextProtos, config.ServerName = []string{Protocol}, serverName
	if serverName == "" {
		var err error
		if config.ServerName, _, err = net.SplitHostPort(a.Address); err != nil {
			return nil, fmt.Errorf("server address %q: %w", a.Address, err)
		}
	}
	dial := a.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", address)
		}
	}
	raw, err := dial(ctx, target)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	handshake, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := conn.HandshakeContext(handshake); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != Protocol {
		conn.Close()
		return nil, fmt.Errorf("the server does not offer agent links (ALPN %q)", got)
	}
	return conn, nil
}
