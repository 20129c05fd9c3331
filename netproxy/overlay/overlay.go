package overlay

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"orch/internal/podnet"
)

// Overlay keeps the ways to the pods of all other nodes.
type Overlay struct {
	self   string // this node's name
	device *Device
	open   func(context.Context) (io.ReadCloser, error) // a stream of podnet.Path
	heard  func(podnet.Update)                          // who else wants to know of nodes
	log    *slog.Logger
	wake   chan struct{} // holds one token when there is work

	mu     sync.Mutex             // guards what follows
	peers  map[string]podnet.Peer // by node
	listed bool                   // peers is complete
	moved  netip.Addr             // the node's address, if it is another now
	look   bool                   // the kernel may hold something else than what was set

	// These are Run's alone.
	applied  *entries // what the kernel holds; nil: not known
	admitted map[string]podnet.Peer
}

// New returns the overlay of the node self; open gives a server's stream of
// podnet.Path, what it says is passed on to heard. Run makes it work.
func New(self string, device *Device, open func(context.Context) (io.ReadCloser, error), heard func(podnet.Update), log *slog.Logger) *Overlay {
	return &Overlay{self: self, device: device, open: open, heard: heard, log: log, wake: make(chan struct{}, 1), peers: make(map[string]podnet.Peer)}
}

// Retries after a failure wait this long, doubling up to the second.
const (
	retryFirst = time.Second
	retryMax   = 30 * time.Second
)

// Run follows the nodes until ctx ends. What it set stays behind: pods talk on
// without this process.
func (o *Overlay) Run(ctx context.Context) error {
	var following sync.WaitGroup
	following.Go(func() { o.follow(ctx) })
	defer following.Wait()
	var retry <-chan time.Time
	delay := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-retry:
		}
		if err := o.sync(); err != nil {
			o.applied = nil
			o.log.Warn("the ways to pods on other nodes are not complete, will retry", "error", err, "after", delay)
			retry, delay = time.After(delay), min(2*delay, retryMax)
			continue
		}
		retry, delay = nil, retryFirst
	}
}

// sync brings the kernel to what the peers want. Before all nodes have been
// listed nothing is done, lest the ways of an earlier process be removed; a
// node that is alone never gets the link.
func (o *Overlay) sync() error {
	o.mu.Lock()
	peers, listed := maps.Clone(o.peers), o.listed
	if o.moved.IsValid() {
		o.device.Addr, o.moved = o.moved, netip.Addr{}
	}
	if o.look {
		o.applied, o.look = nil, false
	}
	o.mu.Unlock()
	if !listed {
		return nil
	}
	told := len(peers)
	peers = o.device.Limits.admit(peers, o.admitted)
	if len(peers) < told && !maps.Equal(peers, o.admitted) {
		o.log.Warn("nodes whose address or pod range cannot be, or is another's, are left out", "nodes", told-len(peers))
	}
	o.admitted = peers
	if o.applied == nil {
		if len(peers) == 0 {
			return Remove(o.device.Name)
		}
		if err := o.device.ensure(); err != nil {
			return err
		}
		held, err := o.device.entries()
		if err != nil {
			return err
		}
		o.applied = &held
	}
	wanted := plan(peers)
	if err := o.device.apply(*o.applied, wanted); err != nil {
		return err
	}
	o.applied = &wanted
	return nil
}

// follow keeps peers up to date. While no server tells of any, the ways stay as
// they are.
func (o *Overlay) follow(ctx context.Context) {
	for delay := retryFirst; ; delay = min(2*delay, retryMax) {
		err := podnet.Follow(ctx, o.open, func(u podnet.Update) {
			delay = retryFirst
			o.take(u)
		})
		if ctx.Err() != nil {
			return
		}
		o.log.Debug("no word of other nodes, will ask again", "error", err, "after", delay)
		select {
		case <-ctx.Done():
			return
		// Spread, for a server that went has left many nodes at once.
		case <-time.After(delay/2 + rand.N(delay)):
		}
	}
}

// take notes an update.
func (o *Overlay) take(u podnet.Update) {
	o.heard(u)
	o.mu.Lock()
	defer o.mu.Unlock()
	if u.Whole {
		o.peers, o.listed = make(map[string]podnet.Peer, len(u.Peers)), true
	}
	maps.Copy(o.peers, u.Peers)
	for _, node := range u.Gone {
		delete(o.peers, node)
	}
	delete(o.peers, o.self)
	o.changed()
}

// Recheck tells that somebody else may have changed what is ours.
func (o *Overlay) Recheck() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.look = true
	o.changed()
}

// Move tells that the node has another address now.
func (o *Overlay) Move(to netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moved, o.look = to, true
	o.changed()
}

// changed wakes Run. Call with mu held.
func (o *Overlay) changed() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
