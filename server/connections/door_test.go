package connections

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"orch/internal/pki"
)

// world is a server behind a door, on loopback.
type world struct {
	ca      *pki.Authority
	address string
	log     *strings.Builder
}

func newWorld(t *testing.T, limits Limits, handler http.Handler) *world {
	t.Helper()
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	serving, err := pki.NewIssuedSource(ca, pki.ServingProfile(nil, nil, "cluster.local"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: ca, log: &strings.Builder{}}
	server := &http.Server{
		Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		TLSConfig: &tls.Config{GetCertificate: serving.GetCertificate, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool(), NextProtos: []string{"h2", "http/1.1"}},
	}
	if err := Configure(server); err != nil {
		t.Fatal(err)
	}
	known := func(s tls.ConnectionState) string {
		if len(s.VerifiedChains) == 0 {
			return ""
		}
		return s.PeerCertificates[0].Subject.CommonName
	}
	door := NewDoor(limits, known, slog.New(slog.NewTextHandler(w.log, nil)))
	server.TLSConfig = door.Check(server.TLSConfig)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = inner.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(door.Listen(inner), "", "") }()
	t.Cleanup(func() {
		server.Shutdown(context.Background())
		server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		door.mu.Lock()
		defer door.mu.Unlock()
		if f := door.handshakes.Figures(); f.Executing != 0 || door.strangers != 0 || door.probation != 0 || len(door.byAddress) != 0 || len(door.byPeer) != 0 {
			t.Errorf("left over: %+v, %d strangers, %d on probation, %v", f, door.strangers, door.probation, door.byAddress)
		}
	})
	return w
}

// dial gives a connection that got through, with the certificate of a node or
// without any.
func (w *world) dial(t *testing.T, node bool, protocol string) (*tls.Conn, error) {
	t.Helper()
	config := &tls.Config{RootCAs: w.ca.Pool(), NextProtos: []string{protocol}}
	if node {
		pair, err := w.ca.Issue(pki.NodeClientProfile("n1"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pair.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.Dial("tcp", w.address, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	// A refused certificate shows at the first read.
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_, err = conn.Read(make([]byte, 1))
	return conn, err
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })

// Strangers' connections are bounded; a node always gets in.
func TestDoorBoundsStrangers(t *testing.T) {
	w := newWorld(t, Limits{Strangers: 10, PerAddress: 3, PerPeer: 5, Probation: 2}, hello)
	var first *tls.Conn
	for range 3 {
		conn, err := w.dial(t, false, "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		first = conn
	}
	for range 5 {
		if _, err := w.dial(t, false, "http/1.1"); err == nil {
			t.Error("one more than an address may have")
		}
		if _, err := w.dial(t, true, "http/1.1"); err != nil {
			t.Errorf("a node: %v", err)
		}
	}
	if _, err := w.dial(t, true, "http/1.1"); err == nil {
		t.Error("one more than a node may have")
	}
	if strings.Count(w.log.String(), "\n") != 1 {
		t.Errorf("the log says:\n%s", w.log)
	}
	first.Close()
	for { // the server sees the end in its own time
		if _, err := w.dial(t, false, "http/1.1"); err == nil {
			return
		}
	}
}

// Beyond probation nobody gets as far as a handshake.
func TestDoorBoundsHandshakes(t *testing.T) {
	w := newWorld(t, Limits{Strangers: 1, PerAddress: 1, Probation: 1}, hello)
	for range 2 {
		silent, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
	}
	third, err := net.Dial("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("the third connection is open")
	}
}

func TestDefaultLimits(t *testing.T) {
	l := DefaultLimits()
	if l.Strangers < 64 || l.PerAddress >= l.Strangers || l.Probation < 1 {
		t.Errorf("%+v", l)
	}
}

// A header without end is refused.
func TestHeaderIsBounded(t *testing.T) {
	w := newWorld(t, Limits{Strangers: 10, PerAddress: 10, Probation: 1}, hello)
	conn, err := tls.Dial("tcp", w.address, &tls.Config{RootCAs: w.ca.Pool(), NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 2*maxHeader/1000)+"\r\n")
	answer, _ := io.ReadAll(conn) // the connection is reset once it is there
	if !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("%.60q", answer)
	}
}
