package robustness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/test/cluster"
)

// nemesis injects faults, several at a time: what it does next, to whom and for
// how long, follows from its seed.
type nemesis struct {
	*servers
	random *rand.Rand
	log    func(format string, args ...any)

	mu       sync.Mutex
	busy     map[string]bool // what a fault is at work on; guarded by mu
	injected map[string]int  // by kind of fault; guarded by mu
	broken   []string        // what no fault explains; guarded by mu
}

func newNemesis(s *servers, seed uint64, log func(string, ...any)) *nemesis {
	return &nemesis{servers: s, random: rand.New(rand.NewPCG(seed, 1)), log: log, busy: make(map[string]bool), injected: make(map[string]int)}
}

// fault is one kind of harm. Its parts need what they work on for themselves:
// a server's process, or the network.
type fault struct {
	name    string
	weight  int
	network bool // works on the network, not on a process
	all     bool // works on all servers
	alone   bool // one at a time: two new machines must not wait for each other
	longest time.Duration
	inject  func(n *nemesis, ctx context.Context, on *cluster.Node) error
	mend    func(n *nemesis, ctx context.Context, on *cluster.Node) error
}

func faults() []fault {
	start := func(n *nemesis, _ context.Context, on *cluster.Node) error { return on.Start() }
	heal := func(n *nemesis, _ context.Context, _ *cluster.Node) error { return n.heal() }
	return []fault{
		{name: "kill", weight: 4, longest: 3 * time.Second, mend: start,
			inject: func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Kill() }},
		{name: "long absence", weight: 2, longest: 10 * time.Second, mend: start,
			inject: func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Kill() }},
		{name: "stop", weight: 1, longest: 2 * time.Second, mend: start,
			inject: func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Stop() }},
		{name: "pause", weight: 4, longest: 5 * time.Second,
			inject: func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Pause() },
			mend:   func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Resume() }},
		{name: "restart of all", weight: 1, all: true, longest: time.Second,
			inject: func(n *nemesis, _ context.Context, _ *cluster.Node) error { return each(n.all, (*cluster.Node).Kill) },
			mend:   func(n *nemesis, _ context.Context, _ *cluster.Node) error { return each(n.all, (*cluster.Node).Start) }},
		{name: "new machine", weight: 2, alone: true, longest: time.Second,
			inject: func(n *nemesis, ctx context.Context, on *cluster.Node) error {
				return n.replace(context.WithoutCancel(ctx), on)
			},
			mend: func(n *nemesis, ctx context.Context, on *cluster.Node) error { return n.rejoin(ctx, on) }},
		{name: "full disk", weight: 2, longest: 4 * time.Second, inject: fillDisk, mend: freeDisk},
		{name: "cut both ways", weight: 2, network: true, longest: 5 * time.Second, mend: heal,
			inject: func(n *nemesis, _ context.Context, on *cluster.Node) error {
				return cluster.Partition([]*cluster.Node{on}, n.others(on))
			}},
		{name: "cut off deaf", weight: 2, network: true, longest: 5 * time.Second, mend: heal,
			inject: func(n *nemesis, _ context.Context, on *cluster.Node) error { return on.CutFrom(n.others(on)...) }},
		{name: "cut off mute", weight: 2, network: true, longest: 5 * time.Second, mend: heal,
			inject: func(n *nemesis, _ context.Context, on *cluster.Node) error {
				return each(n.others(on), func(other *cluster.Node) error { return other.CutFrom(on) })
			}},
		{name: "cut between two", weight: 2, network: true, longest: 5 * time.Second, mend: heal,
			inject: func(n *nemesis, _ context.Context, on *cluster.Node) error {
				return cluster.Partition([]*cluster.Node{on}, n.others(on)[:1])
			}},
		{name: "slow link", weight: 2, network: true, longest: 5 * time.Second,
			inject: func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Slow("256kbit", 8) },
			mend:   func(_ *nemesis, _ context.Context, on *cluster.Node) error { return on.Mend() }},
	}
}

// rejoin waits until a new machine has joined; other faults go on meanwhile.
func (n *nemesis) rejoin(ctx context.Context, on *cluster.Node) error {
	for ctx.Err() == nil { // then it is for recover to wait
		n.revive(ctx, on)
		if n.wellSoon(ctx, on) == nil {
			break
		}
		pause(ctx, retry)
	}
	return nil
}

// fillDisk also writes much, through another server: what small writes need, the
// files have in reserve.
func fillDisk(n *nemesis, ctx context.Context, on *cluster.Node) error {
	if err := on.FillDisk(0); err != nil {
		return err
	}
	a, err := newAccess(n.others(on)[0])
	if err != nil {
		return err
	}
	defer a.close()
	big := configMap{APIVersion: "v1", Kind: "ConfigMap", Metadata: metadata{Name: "big"}, Data: map[string]string{dataKey: strings.Repeat("x", 256<<10)}}
	ctx, cancel := context.WithTimeout(ctx, callTimeout) // with no quorum nothing is written
	defer cancel()
	for ctx.Err() == nil && on.Running() {
		_, _, _ = a.do(ctx, http.MethodPost, mapsPath, big) // other faults may be at work
		_, _, _ = a.do(ctx, http.MethodDelete, mapsPath+"/big", nil)
	}
	return nil
}

// freeDisk makes room: a full disk ends no server.
func freeDisk(n *nemesis, _ context.Context, on *cluster.Node) error {
	select {
	case <-on.Exited():
		n.complain("%s has ended because its disk was full:\n%s", on.Name, on.LogTail())
	default:
	}
	return on.FreeDisk()
}

func each(nodes []*cluster.Node, do func(*cluster.Node) error) error {
	for _, n := range nodes {
		if err := do(n); err != nil {
			return err
		}
	}
	return nil
}

func (n *nemesis) heal() error { return each(n.all, (*cluster.Node).Heal) }

func (n *nemesis) count(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.injected[what]++
}

// run injects faults until ctx ends, and returns when all are mended.
func (n *nemesis) run(ctx context.Context) error {
	var group errgroup.Group
	for {
		select {
		case <-time.After(time.Duration(200+n.random.IntN(1800)) * time.Millisecond):
		case <-ctx.Done():
			return group.Wait()
		}
		n.look(ctx)
		// All chance is spent here, one fault after the other.
		f, on, lasting := n.choose(ctx)
		if on == nil {
			continue
		}
		group.Go(func() error {
			defer n.release(f, on)
			if err := n.apply(ctx, f, on, lasting); err != nil {
				return fmt.Errorf("%s on %s: %w", f.name, on.Name, err)
			}
			return nil
		})
	}
}

// choose picks a fault and takes hold of what it works on; nil: that is taken.
func (n *nemesis) choose(ctx context.Context) (fault, *cluster.Node, time.Duration) {
	kinds, total := faults(), 0
	for _, f := range kinds {
		total += f.weight
	}
	at := n.random.IntN(total)
	f := kinds[0]
	for _, f = range kinds {
		if at -= f.weight; at < 0 {
			break
		}
	}
	on := n.all[n.random.IntN(len(n.all))]
	lasting := 200*time.Millisecond + time.Duration(n.random.Int64N(int64(f.longest)))
	aimed := n.random.IntN(2) == 0 // half of them at the leader
	if f.name == "full disk" {
		on = n.all[len(n.all)-1]
	} else if aimed {
		if leader := n.leader(ctx, n.free()); leader != nil {
			on = leader
		}
	}
	if !n.take(f, on) {
		return f, nil, 0
	}
	return f, on, lasting
}

// needs names what the fault works on.
func (n *nemesis) needs(f fault, on *cluster.Node) []string {
	switch {
	case f.network:
		return []string{"network"}
	case f.all:
		names := make([]string, len(n.all))
		for i, o := range n.all {
			names[i] = o.Name
		}
		return names
	case f.alone:
		return []string{f.name, on.Name}
	}
	return []string{on.Name}
}

func (n *nemesis) take(f fault, on *cluster.Node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range n.needs(f, on) {
		if n.busy[name] {
			return false
		}
	}
	for _, name := range n.needs(f, on) {
		n.busy[name] = true
	}
	return true
}

func (n *nemesis) release(f fault, on *cluster.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range n.needs(f, on) {
		delete(n.busy, name)
	}
}

// free are the servers whose process no fault is at work on.
func (n *nemesis) free() (free []*cluster.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range n.all {
		if !n.busy[o.Name] {
			free = append(free, o)
		}
	}
	return free
}

func (n *nemesis) apply(ctx context.Context, f fault, on *cluster.Node, lasting time.Duration) error {
	n.log("%s of %s for %s", f.name, on.Name, lasting.Round(time.Millisecond))
	n.count(f.name)
	if err := f.inject(n, ctx, on); err != nil {
		return err
	}
	select {
	case <-time.After(lasting):
	case <-ctx.Done():
	}
	if f.mend == nil {
		return nil
	}
	return f.mend(n, ctx, on)
}

// look finds servers that have ended though no fault is at work on them.
func (n *nemesis) look(ctx context.Context) {
	for _, on := range n.free() {
		n.revive(ctx, on)
	}
}

// revive starts a server that has ended by itself, which is wrong, unless it
// says that it was removed: the answer to the removal was lost.
func (n *nemesis) revive(ctx context.Context, on *cluster.Node) {
	select {
	case <-on.Exited():
	default:
		return
	}
	lines := strings.Split(on.LogTail(), "\n")
	var err error
	if strings.Contains(strings.Join(lines[max(0, len(lines)-4):], "\n"), "removed from the cluster") {
		err = n.anew(ctx, on)
	} else {
		n.complain("%s has ended by itself:\n%s", on.Name, strings.Join(lines, "\n"))
		err = on.Start()
	}
	if err != nil {
		n.complain("%s does not start: %v", on.Name, err)
	}
}

func (n *nemesis) complain(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = append(n.broken, fmt.Sprintf(format, args...))
}

// complaints are what was found since the last call.
func (n *nemesis) complaints() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	broken := n.broken
	n.broken = nil
	return broken
}

// recover waits until all is well after the faults.
func (n *nemesis) recover(ctx context.Context) error {
	if err := n.heal(); err != nil {
		return err
	}
	n.look(ctx)
	for _, on := range n.all {
		if err := until(ctx, on.Name, func(ctx context.Context) error { n.look(ctx); return n.wellSoon(ctx, on) }); err != nil {
			return err
		}
	}
	return n.voting(ctx)
}

// wellSoon gives one server a short while.
func (n *nemesis) wellSoon(ctx context.Context, on *cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return n.ready(ctx, on)
}

// summary tells how often each fault was injected.
func (n *nemesis) summary() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return counts(n.injected)
}
