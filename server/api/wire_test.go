package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"orch/server/fairness"
)

// rawClient speaks HTTP/2 frame by frame, as clients should not.
type rawClient struct {
	t      *testing.T
	conn   *tls.Conn
	framer *http2.Framer
	head   bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32
}

// newRawClient connects and lets each stream receive window bytes.
func newRawClient(t *testing.T, s *testServer, window uint32) *rawClient {
	t.Helper()
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rawClient{t: t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1}
	c.hpack = hpack.NewEncoder(&c.head)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c.must(c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	return c
}

func (c *rawClient) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// send starts a request and gives its stream; open: a body is promised.
func (c *rawClient) send(method, path string, open bool) uint32 {
	c.t.Helper()
	c.head.Reset()
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "x"}, {":path", path}} {
		c.must(c.hpack.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	id := c.next
	c.next += 2
	c.must(c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.head.Bytes(), EndStream: !open, EndHeaders: true}))
	return id
}

// await reads frames until one satisfies ok.
func (c *rawClient) await(ok func(http2.Frame) bool) {
	c.t.Helper()
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			c.t.Fatal(err)
		}
		if ok(frame) {
			return
		}
	}
}

// headers awaits the heads of n answers, which need no window.
func (c *rawClient) headers(n int) {
	c.t.Helper()
	c.await(func(f http2.Frame) bool {
		if _, is := f.(*http2.HeadersFrame); is {
			n--
		}
		return n == 0
	})
}

// Who reads nothing holds no seat: not with small answers, not in the middle of
// a list, not with a body that does not come.
func TestSeatIsNotHeldForClients(t *testing.T) {
	s := newTestServer(t, func(cfg *Config) { cfg.Levels = oneSeat() })
	fillPods(t, s.reg, 300)
	for path, window := range map[string]uint32{"/version": 0, "/api/v1/pods": 100 << 10} {
		c := newRawClient(t, s, window)
		for range 100 {
			c.send("GET", path, false)
			c.headers(1)
		}
	}
	c := newRawClient(t, s, 0)
	for range 100 {
		c.send("POST", "/api/v1/namespaces/default/configmaps", true)
	}
	for range 20 {
		resp, err := s.Client().Get(s.URL + "/api/v1/pods")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || n < 200<<10 {
			t.Errorf("%s, %d bytes, %v", resp.Status, n, err)
		}
	}
}

// A watch whose client does not read ends.
func TestStalledWatchEnds(t *testing.T) {
	s := newTestServer(t, func(cfg *Config) { cfg.StallTime = 50 * time.Millisecond })
	fillPods(t, s.reg, 100)
	c := newRawClient(t, s, 1000)
	id := c.send("GET", "/api/v1/pods?watch=1", false)
	c.await(func(f http2.Frame) bool {
		reset, is := f.(*http2.RSTStreamFrame)
		return is && reset.StreamID == id
	})
	server, client := net.Pipe() // which buffers nothing
	defer client.Close()
	plain := http.Server{Handler: s.api}
	served := make(chan error, 1)
	go func() { served <- plain.Serve(&oneConn{conn: server, done: make(chan struct{})}) }()
	io.WriteString(client, "GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	<-served // the connection was closed, so there is no further one to accept
	plain.Close()
}

// oneConn is a listener with one connection. It ends when that is closed.
type oneConn struct {
	conn net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return &tellingConn{conn, l}, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

type tellingConn struct {
	net.Conn
	listener *oneConn
}

func (c *tellingConn) Close() error { c.listener.Close(); return c.Conn.Close() }

// What a user may hold is bounded; others are not concerned.
func TestStreamsOfUserAreBounded(t *testing.T) {
	user := &oneUser{}
	levels := oneSeat()
	levels.Everybody = fairness.NewLevel("everybody", fairness.Limits{Seats: 100, Queued: 100, FlowQueued: 100, Patience: time.Second, Bytes: 100 << 20, FlowBytes: 10 * watchBytes})
	s := newTestServer(t, func(cfg *Config) { cfg.Levels, cfg.Authenticator = levels, user })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := func() int {
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/api/v1/pods?watch=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	for i := range 10 {
		if code := watch(); code != 200 {
			t.Fatalf("watch %d: %d", i, code)
		}
	}
	if code := watch(); code != http.StatusTooManyRequests {
		t.Errorf("the eleventh watch: %d", code)
	}
	user.groups = []string{"system:nodes"}
	if code := watch(); code != 200 {
		t.Errorf("a node's watch: %d", code)
	}
}

// Who is turned away is answered without what was promised as a body, and the
// connection ends.
func TestUnauthorizedBodyIsNotRead(t *testing.T) {
	s := newTestServer(t, func(cfg *Config) { cfg.Authenticator = nobody{} })
	conn := dialPlain(t, s)
	io.WriteString(conn, "POST /api/v1/namespaces/a/configmaps HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 401 ") {
		t.Errorf("%q %v", answer, err)
	}
}

// What a level's requests hold is given back when they end, however they do.
func TestHoldingsAreGivenBack(t *testing.T) {
	s := newTestServer(t)
	for i := range 10 {
		big := fmt.Sprintf(`{"metadata":{"name":"c%d"},"data":{"a":"%s"}}`, i, strings.Repeat("x", 200<<10))
		resp, err := s.Client().Post(s.URL+"/api/v1/namespaces/a/configmaps", contentJSON, strings.NewReader(big))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 201 {
			t.Errorf("%s", resp.Status)
		}
	}
	newRawClient(t, s, 0).conn.Close()
	s.Server.CloseClientConnections()
	s.Server.Close() // waits for the requests
	for _, level := range s.api.cfg.Levels.All() {
		if f := level.Figures(); f.Held != 0 || f.Executing != 0 || f.Waiting != 0 {
			t.Errorf("%s: %+v", level.Name, f)
		}
	}
}

// A node whose answer to an exec never ends does not hold the request.
func TestEstablishing(t *testing.T) {
	for text, want := range map[string]error{
		"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n" + strings.Repeat("x", 1<<20):               nil,
		"HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("A: b\r\n", maxAnswerHeader) + "\r\n": errEndlessHeader,
	} {
		node, server := net.Pipe()
		go func() {
			io.WriteString(node, text)
			node.Close()
		}()
		n, err := io.Copy(io.Discard, establishing(server))
		if err != want || err == nil && n != int64(len(text)) {
			t.Errorf("%d bytes, %v; want %v", n, err, want)
		}
		server.Close()
	}
}
