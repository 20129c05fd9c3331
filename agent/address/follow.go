package address

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/netproxy/kernel"
)

// settle is how long the node's address may be away before another one takes its
// place: a lease is renewed and a network manager restarted in less.
const settle = 3 * time.Second

// Find gives the node's address, and waits while there is none. A machine that had
// one the last time goes on with that meanwhile: its pods must not wait for a cable.
func Find(ctx context.Context, dataDir string, log *slog.Logger) (netip.Addr, error) {
	m, err := look()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find this machine's address: %w (give --node-ip)", err)
	}
	if addr, ok := m.choose(); ok {
		return addr, nil
	}
	log = log.With("component", "address")
	if addr := remembered(dataDir); addr.IsValid() {
		log.Warn("this machine has no address at which others could reach it; going on with the one it had", "address", addr)
		return addr, nil
	}
	log.Warn("this machine has no address at which others could reach it; waiting for one (or give --node-ip)")
	found := make(chan netip.Addr, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error {
		defer stop()
		return watch(watching, func() {
			if m, err := look(); err == nil {
				if addr, ok := m.choose(); ok {
					select {
					case found <- addr:
					default:
					}
					stop()
				}
			}
		})
	})
	if err := group.Wait(); err != nil {
		return netip.Addr{}, fmt.Errorf("wait for an address of this machine: %w (give --node-ip)", err)
	}
	select {
	case addr := <-found:
		log.Info("this machine has an address now", "address", addr)
		return addr, nil
	default:
		return netip.Addr{}, ctx.Err()
	}
}

// watch calls changed at once, and whenever addresses of this machine change.
func watch(ctx context.Context, changed func()) error {
	changed()
	return kernel.Watch(ctx, kernel.Interest{Link: func(int) bool { return false }, Route: func(netip.Prefix) bool { return false }}, changed)
}

func file(dataDir string) string { return filepath.Join(dataDir, "agent", "node-address") }

func remembered(dataDir string) netip.Addr {
	data, _ := os.ReadFile(file(dataDir))
	addr, _ := netip.ParseAddr(strings.TrimSpace(string(data)))
	return addr
}

// Tracker follows the node's address.
type Tracker struct {
	current atomic.Pointer[netip.Addr]
	given   bool // by --node-ip: it stays, wherever it is
	dataDir string
	log     *slog.Logger

	// These belong to Run.
	away   time.Time // since when the address is not here; zero: it is
	warned bool
}

// Follow makes a tracker of a node that begins at addr.
func Follow(addr netip.Addr, given bool, dataDir string, log *slog.Logger) *Tracker {
	t := &Tracker{given: given, dataDir: dataDir, log: log.With("component", "address")}
	t.current.Store(&addr)
	return t
}

// Current is the node's address.
func (t *Tracker) Current() netip.Addr { return *t.current.Load() }

// Run calls moved after the node's address became another one, until ctx ends.
func (t *Tracker) Run(ctx context.Context, moved func(from, to netip.Addr)) error {
	wake := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := watch(ctx, func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
		if err != nil {
			t.log.Warn("a change of this machine's address will not be noticed", "err", err)
		}
		return nil
	})
	group.Go(func() error {
		t.remember()
		var again <-chan time.Time
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-wake:
			case <-again:
			}
			again = nil
			m, err := look()
			if err != nil {
				t.log.Warn("cannot look at this machine's addresses", "err", err)
				continue
			}
			from := t.Current()
			to, wait := t.next(time.Now(), m)
			if wait > 0 {
				again = time.After(wait)
			}
			if to != from {
				t.current.Store(&to)
				t.remember()
				t.log.Warn("the node's address is another one now", "was", from, "is", to)
				moved(from, to)
			}
		}
	})
	return group.Wait()
}

// next gives the address to have now, and when to look again if that may change
// without word from the kernel.
func (t *Tracker) next(now time.Time, m *machine) (netip.Addr, time.Duration) {
	current := t.Current()
	if m.has(current) {
		if t.warned {
			t.log.Info("the node's address is back", "address", current)
		}
		t.away, t.warned = time.Time{}, false
		return current, 0
	}
	if t.given {
		if !t.warned {
			t.log.Warn("--node-ip is not an address of this machine: other nodes reach its pods only if something leads that address here", "address", current)
		}
		t.warned = true
		return current, 0
	}
	if t.away.IsZero() {
		t.away = now
	}
	other, found := m.choose()
	switch waited := now.Sub(t.away); {
	case found && waited >= settle:
		t.away, t.warned = time.Time{}, false
		return other, 0
	case found:
		return current, settle - waited
	}
	if !t.warned {
		t.log.Warn("the node's address is gone, and there is no other", "address", current)
	}
	t.warned = true
	return current, 0
}

// remember keeps the address for a start without any.
func (t *Tracker) remember() {
	if t.given {
		return
	}
	if err := os.MkdirAll(filepath.Dir(file(t.dataDir)), 0o700); err == nil {
		_ = os.WriteFile(file(t.dataDir), []byte(t.Current().String()+"\n"), 0o600) // the next start can do without
	}
}
