package store

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// network joins the servers of a test over loopback. It can drop what one
// server sends to another.
type network struct {
	mu        sync.Mutex
	listeners map[string]net.Listener // by address and service
	cut       map[[2]string]bool      // from, to
	conns     map[*cuttable]struct{}
}

func newNetwork() *network {
	return &network{listeners: make(map[string]net.Listener), cut: make(map[[2]string]bool), conns: make(map[*cuttable]struct{})}
}

// layer is one server's raft.StreamLayer for one service.
type layer struct {
	net.Listener
	network       *network
	name, service string
}

func (n *network) layer(t testing.TB, name, service string) *layer {
	t.Helper()
	l, err := n.listen(name, service)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (n *network) listen(name, service string) (*layer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[name+service] = l
	return &layer{l, n, name, service}, nil
}

func (l *layer) Addr() net.Addr { return address(l.name) }

func (l *layer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	l.network.mu.Lock()
	listener, cut := l.network.listeners[string(to)+l.service], l.network.cut[[2]string{l.name, string(to)}]
	l.network.mu.Unlock()
	if listener == nil || cut {
		return nil, errors.New("no route to " + string(to))
	}
	conn, err := net.DialTimeout("tcp", listener.Addr().String(), timeout)
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(conn, l.name+"\n")
	return l.network.track(conn, conn, l.name, string(to)), err
}

func (l *layer) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		in := bufio.NewReader(conn)
		from, err := in.ReadString('\n')
		if err == nil {
			return l.network.track(conn, in, l.name, strings.TrimSpace(from)), nil
		}
		conn.Close()
	}
}

// cuttable is a connection that loses what is sent while it is cut, and then
// all that follows, like one whose packets are dropped.
type cuttable struct {
	net.Conn
	in       io.Reader
	network  *network
	from, to string
	broken   atomic.Bool
}

func (n *network) track(conn net.Conn, in io.Reader, from, to string) net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &cuttable{Conn: conn, in: in, network: n, from: from, to: to}
	n.conns[c] = struct{}{}
	return c
}

func (c *cuttable) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c *cuttable) Write(b []byte) (int, error) {
	c.network.mu.Lock()
	if c.network.cut[[2]string{c.from, c.to}] {
		c.broken.Store(true)
	}
	c.network.mu.Unlock()
	if c.broken.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close of a cut connection ends this side alone; the other hears nothing of it
// until the network heals.
func (c *cuttable) Close() error {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	if c.network.cut[[2]string{c.from, c.to}] {
		c.broken.Store(true)
		return c.Conn.SetDeadline(time.Unix(1, 0))
	}
	delete(c.network.conns, c)
	return c.Conn.Close()
}

// block drops what from sends to each of to.
func (n *network) block(from string, to ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range to {
		n.cut[[2]string{from, t}] = true
	}
}

// isolate cuts name off from others both ways.
func (n *network) isolate(name string, others ...string) {
	n.block(name, others...)
	for _, o := range others {
		n.block(o, name)
	}
}

// heal lets everything through again. Connections that lost something break.
func (n *network) heal() {
	n.mu.Lock()
	n.cut = make(map[[2]string]bool)
	var broken []*cuttable
	for c := range n.conns {
		if c.broken.Load() {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.Close()
	}
}

// trio is three servers on a network; each can be ended and started again.
type trio struct {
	t       testing.TB
	network *network
	cfgs    map[string]Config
	stores  map[string]*Store
	stops   map[string]func() error
}

func newTrio(t testing.TB) *trio {
	c := &trio{
		t: t, network: newNetwork(), cfgs: make(map[string]Config), stores: make(map[string]*Store),
		stops: make(map[string]func() error),
	}
	t.Cleanup(func() {
		c.network.heal()
		for name := range c.stops {
			c.stop(name)
		}
	})
	c.cfgs["a"] = Config{Name: "a", Dir: t.TempDir()}
	c.start("a")
	for _, name := range []string{"b", "c"} {
		c.cfgs[name] = Config{Name: name, Dir: t.TempDir(), Join: []string{"a"}}
		c.start(name)
	}
	c.awaitVoters(3)
	return c
}

// start starts a server and waits until it is ready.
func (c *trio) start(name string) *Store {
	c.t.Helper()
	c.launch(name)
	c.awaitReady(name)
	return c.stores[name]
}

// launch starts a server without waiting for it.
func (c *trio) launch(name string) {
	c.t.Helper()
	cfg := c.cfgs[name]
	cfg.Raft, cfg.Peers = c.network.layer(c.t, name, "/raft"), c.network.layer(c.t, name, "/peers")
	c.stores[name], c.stops[name] = launchAside(c.t, cfg)
}

func (c *trio) awaitReady(name string) {
	c.t.Helper()
	select {
	case <-c.stores[name].Ready():
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%s is not ready", name)
	}
}

// stop ends a server in order.
func (c *trio) stop(name string) {
	c.t.Helper()
	if stop := c.stops[name]; stop != nil {
		delete(c.stops, name)
		if err := stop(); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}
}

// awaitVoters waits until the leader counts so many voters.
func (c *trio) awaitVoters(n int) {
	c.t.Helper()
	leader := c.leader()
	deadline := time.Now().Add(20 * time.Second)
	for {
		changed := leader.MembersChanged()
		members, err := leader.Members(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		voters := 0
		for _, m := range members {
			if m.Voter {
				voters++
			}
		}
		if voters == n {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Until(deadline)):
			c.t.Fatalf("members are %+v", members)
		}
	}
}

// leader waits for a server that leads.
func (c *trio) leader() *Store { return c.leaderBut("") }

func (c *trio) leaderBut(not string) *Store {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		for name, s := range c.stores {
			if c.stops[name] != nil && name != not && s.IsLeader() {
				return s
			}
		}
		<-time.After(5 * time.Millisecond)
	}
	c.t.Fatal("nobody leads")
	return nil
}

// inTouch waits until s has found the leader again.
func (c *trio) inTouch(s *Store) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		routed := s.routed.wait()
		_, err := s.Sync(c.t.Context())
		if err == nil {
			return
		}
		select {
		case <-routed:
		case <-time.After(time.Until(deadline)):
			c.t.Fatalf("sync %s: %v", s.cfg.Name, err)
		}
	}
}

func (c *trio) others(name string) (others []string) {
	for _, n := range []string{"a", "b", "c"} {
		if n != name {
			others = append(others, n)
		}
	}
	return others
}

// same checks that all servers hold the same and have written the same.
func (c *trio) same() {
	c.t.Helper()
	want := ""
	for _, name := range []string{"a", "b", "c"} {
		s := c.stores[name]
		if c.stops[name] == nil {
			continue
		}
		c.inTouch(s)
		got := ""
		s.Scan("", "", 0, func(e *Entry) bool {
			got += e.Key + "=" + string(e.Object.([]byte)) + "@" + itoa(e.CreateRevision) + "," + itoa(e.ModRevision) + " "
			return true
		})
		got += itoa(s.Revision())
		if want == "" {
			want = got
		}
		if got != want {
			c.t.Errorf("%s differs:\n%s\n%s", name, got, want)
		}
		if err := s.Check(context.Background()); err != nil {
			c.t.Errorf("check %s: %v", name, err)
		}
	}
}
