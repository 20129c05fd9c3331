package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/internal/pki"
)

// world is a server with a hub, on loopback TLS.
type world struct {
	ca      *pki.Authority
	hub     *Hub
	address string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: ca, hub: NewHub()}
	serving, err := pki.NewIssuedSource(ca, pki.ServingProfile(nil, nil, "cluster.local"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetCertificate: serving.GetCertificate, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool(),
		NextProtos: []string{"h2", "http/1.1", Protocol},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	server := &http.Server{
		Handler:      http.NotFoundHandler(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){Protocol: w.hub.ServeTLS},
	}
	server.RegisterOnShutdown(w.hub.Close)
	var serve errgroup.Group
	serve.Go(func() error { return server.Serve(listener) })
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := serve.Wait(); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return w
}

func (w *world) tls(t *testing.T, profile pki.Profile) *tls.Config {
	t.Helper()
	pair, err := w.ca.Issue(profile, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: w.ca.Pool(), Certificates: []tls.Certificate{*cert}}
}

// start runs an agent of the node; stop ends it and waits.
func (w *world) start(t *testing.T, node string, handler http.Handler, dial func(context.Context, string) (net.Conn, error)) (stop func()) {
	t.Helper()
	agent := &Agent{Address: w.address, TLS: w.tls(t, pki.NodeClientProfile(node)), Handler: handler, Dial: dial}
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return agent.Run(ctx) })
	stop = func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (w *world) get(t *testing.T, node string) (string, error) {
	t.Helper()
	transport, err := w.hub.Transport(node)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Get("http://" + node + "/hello")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return string(data), err
}

func answering(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text, " ", r.URL.Path) })
}

func TestLink(t *testing.T) {
	w := newWorld(t)
	w.start(t, "n1", answering("one"), nil)
	w.start(t, "n2", answering("two"), nil)
	for node, want := range map[string]string{"n1": "one /hello", "n2": "two /hello"} {
		if got, err := w.get(t, node); err != nil || got != want {
			t.Errorf("%s answers %q, %v", node, got, err)
		}
	}
}

func TestNotConnected(t *testing.T) {
	w := newWorld(t)
	_, err := w.hub.Dial(t.Context(), "n9")
	var missing *NotConnectedError
	if !errors.As(err, &missing) || err.Error() != "node n9 is not connected" {
		t.Errorf("got %v", err)
	}
}

// The link comes back after its connection broke, and Dial waits for that.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	conns := make(chan net.Conn, 4)
	w.start(t, "n1", answering("one"), func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			conns <- conn
		}
		return conn, err
	})
	if _, err := w.get(t, "n1"); err != nil {
		t.Fatal(err)
	}
	(<-conns).Close()
	session, _ := w.hub.session("n1")
	if session != nil {
		<-session.CloseChan()
	}
	if got, err := w.get(t, "n1"); err != nil || got != "one /hello" {
		t.Errorf("after the break: %q, %v", got, err)
	}
	<-conns // there was a second connection
}

// A stream survives as a plain connection, as exec and port-forward need it.
func TestHijack(t *testing.T) {
	w := newWorld(t)
	w.start(t, "n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.CopyN(conn, buffered, 5)
	}), nil)
	conn, err := w.hub.Dial(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: n1\r\n\r\n")
	fmt.Fprint(conn, "hello")
	data, err := io.ReadAll(conn)
	if err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
}

// Only nodes may link.
func TestStranger(t *testing.T) {
	w := newWorld(t)
	for name, config := range map[string]*tls.Config{
		"no certificate": {RootCAs: w.ca.Pool()},
		"administrator":  w.tls(t, pki.AdminProfile()),
		"not in group":   w.tls(t, pki.Profile{CommonName: "system:node:n1", Client: true}),
	} {
		config.NextProtos = []string{Protocol}
		conn, err := tls.Dial("tcp", w.address, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the connection stays open", name)
		}
		conn.Close()
	}
	if w.hub.Connected("n1") {
		t.Error("a stranger is linked")
	}
}
