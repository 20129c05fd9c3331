package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// launchAside runs a store without waiting for it.
func launchAside(t testing.TB, cfg Config) (*Store, func() error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
		if os.Getenv("STORE_LOG") != "" {
			cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", cfg.Name)
		}
	}
	s := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var err error
	running.Go(func() { err = s.Run(ctx) })
	return s, sync.OnceValue(func() error { cancel(); running.Wait(); return err })
}

// TestThreeServers writes through each server and reads at each other.
func TestThreeServers(t *testing.T) {
	c := newTrio(t)
	for i := range 30 {
		s := c.stores[string("abc"[i%3])]
		e := mustUpdate(t, s, put(fmt.Sprintf("k/%d", i), "v"))[0]
		if e.ModRevision != int64(i+1) {
			t.Errorf("write %d has revision %d", i, e.ModRevision)
		}
		other := c.stores[string("abc"[(i+1)%3])]
		if rev, err := other.Sync(t.Context()); err != nil || rev < e.ModRevision {
			t.Errorf("sync after write %d: %d, %v", i, rev, err)
		}
		if got, _ := other.Get(e.Key); got == nil || got.ModRevision != e.ModRevision {
			t.Errorf("write %d is read as %+v", i, got)
		}
	}
	var conflict *ConflictError
	for name, s := range c.stores {
		_, err := s.Update(t.Context(), Op{Key: "k/0", Value: []byte("w"), Expect: Absent})
		if !errors.As(err, &conflict) || conflict.Current.ModRevision != 1 || conflict.Key != "k/0" {
			t.Errorf("conflict at %s: %v", name, err)
		}
	}
	c.same()
}

// TestSnapshotInstall adds a server after the log was truncated, so that it
// gets the state as a stream; it remembers its group when started again.
func TestSnapshotInstall(t *testing.T) {
	c := newTrio(t)
	c.stop("c")
	leader := c.leader()
	for i := range 200 {
		var ops []Op
		for j := range 50 {
			ops = append(ops, put(fmt.Sprintf("k/%05d", i*50+j), "value"))
		}
		mustUpdate(t, leader, ops...)
	}
	for _, name := range []string{"a", "b"} {
		if err := c.stores[name].raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	mustUpdate(t, leader, put("k/00000", "after"))
	c.start("c")
	mustUpdate(t, c.stores["c"], put("k/last", "value"))
	c.same()
	c.stop("c")
	mustUpdate(t, leader, put("k/later", "value"))
	c.start("c")
	c.same()
}

// TestLeaderEnds ends the leader in order and as a partition does, under load,
// and checks that no write is lost or done twice.
func TestLeaderEnds(t *testing.T) {
	for _, how := range []string{"stop", "cut off", "cut off one way"} {
		t.Run(how, func(t *testing.T) {
			c := newTrio(t)
			leader := c.leader().cfg.Name
			stopLoad, added := load(t, c)
			<-time.After(300 * time.Millisecond)
			switch how {
			case "stop":
				c.stop(leader)
			case "cut off":
				c.network.isolate(leader, c.others(leader)...)
			default:
				c.network.block(leader, c.others(leader)...)
			}
			began := time.Now()
			c.leaderBut(leader)
			other := c.stores[c.others(leader)[0]]
			mustUpdate(t, other, put("k/after", "v"))
			t.Logf("writes again after %v", time.Since(began))
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("writes again after %v", took)
			}
			<-time.After(300 * time.Millisecond)
			c.network.heal()
			if how == "stop" {
				c.start(leader)
			}
			stopLoad()
			c.inTouch(other)
			for name, n := range added {
				e, _ := other.Get("count/" + name)
				got, _ := strconv.ParseInt(string(e.Object.([]byte)), 10, 64)
				if min, max := n.sure.Load(), n.sure.Load()+n.unsure.Load(); got < min || got > max {
					t.Errorf("%s counted %d, of which %d may not have happened, but there are %d", name, min, max-min, got)
				}
				t.Logf("%s: %d acknowledged, %d unsure", name, n.sure.Load(), n.unsure.Load())
			}
			c.same()
		})
	}
}

type tally struct{ sure, unsure atomic.Int64 }

// load counts up a key through each server, without looking at what is there
// but once: whatever is applied twice or not at all shows. The returned function
// ends it.
func load(t *testing.T, c *trio) (func(), map[string]*tally) {
	tallies := make(map[string]*tally)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for name, s := range c.stores {
		n := &tally{}
		tallies[name] = n
		running.Go(func() {
			key := "count/" + name
			mustUpdate(t, s, put(key, "0"))
			expect := int64(0)
			if e, _ := s.Get(key); e != nil {
				expect = e.ModRevision
			}
			for i := int64(1); ctx.Err() == nil; i++ {
				entries, err := s.Update(t.Context(), Op{Key: key, Value: []byte(itoa(i)), Expect: expect})
				switch {
				case err == nil:
					n.sure.Add(1)
					expect = entries[0].ModRevision
				case errors.Is(err, ErrUnknownOutcome):
					n.unsure.Add(1)
					return
				case errors.Is(err, ErrClosed), errors.Is(err, ErrNotLeader):
					n.unsure.Add(1)
					return
				default:
					t.Errorf("%s: write %d: %v", name, i, err)
					return
				}
			}
		})
	}
	return func() { cancel(); running.Wait() }, tallies
}

// TestWatchEverywhere: each server shows the same events at the same revisions,
// and a watch goes on at another server where it ended.
func TestWatchEverywhere(t *testing.T) {
	c := newTrio(t)
	watchers := make(map[string]*Watcher)
	for name, s := range c.stores {
		w, err := s.Watch("k/", 0)
		if err != nil {
			t.Fatal(err)
		}
		watchers[name] = w
	}
	for i := range 50 {
		mustUpdate(t, c.stores[string("abc"[i%3])], put(fmt.Sprintf("k/%d", i%7), itoa(int64(i))))
	}
	at := int64(0)
	for i := range 50 {
		w, err := c.stores[string("abc"[i%3])].Watch("k/", at)
		if err != nil {
			t.Fatal(err)
		}
		events, _, err := w.Next(t.Context())
		if err != nil || events[0].Revision() != at+1 || string(events[0].Entry.Object.([]byte)) != itoa(int64(i)) {
			t.Fatalf("event %d is %+v, %v", i, events, err)
		}
		at = events[0].Revision()
	}
	for name, w := range watchers {
		for seen := int64(0); seen < 50; {
			events, _, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				if seen++; e.Revision() != seen {
					t.Errorf("%s: event %d comes as number %d", name, e.Revision(), seen)
				}
			}
		}
	}
}

// TestReignFences: what a leader that does not know of its end still writes
// never happens.
func TestReignFences(t *testing.T) {
	c := newTrio(t)
	old := c.leader()
	reigns := make(chan context.Context)
	ctx, cancel := context.WithCancel(t.Context())
	var leading sync.WaitGroup
	leading.Go(func() {
		old.Lead(ctx, func(ctx context.Context) error {
			select {
			case reigns <- ctx:
			case <-ctx.Done():
			}
			<-ctx.Done()
			return nil
		})
	})
	defer func() { cancel(); leading.Wait() }()
	reign := <-reigns
	if _, err := old.Update(reign, put("k/1", "v")); err != nil {
		t.Fatal(err)
	}
	c.network.isolate(old.cfg.Name, c.others(old.cfg.Name)...)
	_, err := old.Update(context.WithoutCancel(reign), put("k/2", "v"))
	if err == nil {
		t.Error("a leader without followers writes")
	}
	c.leaderBut(old.cfg.Name)
	<-reign.Done()
	c.network.heal()
	if _, err := old.Update(context.WithoutCancel(reign), put("k/3", "v")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("after its end: %v", err)
	}
	c.inTouch(old)
	mustUpdate(t, old, put("k/4", "v"))
	if got := list(t, old, "k/", 0); got != "[k/1=v k/4=v]" {
		t.Errorf("there is %s", got)
	}
	c.same()
}

func TestMembers(t *testing.T) {
	c := newTrio(t)
	leader := c.leader()
	gone := c.others(leader.cfg.Name)[0]
	stays := c.others(leader.cfg.Name)[1]
	if err := c.stores[stays].RemoveMember(t.Context(), "nobody"); !errors.Is(err, ErrNoMember) {
		t.Errorf("removing nobody: %v", err)
	}
	if err := c.stores[stays].RemoveMember(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	stop := c.stops[gone]
	delete(c.stops, gone)
	<-c.stores[gone].memory.closed
	if err := stop(); !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed server ends with %v", err)
	}
	c.awaitVoters(2)
	// Its machine installed anew, it may join again; not under a name in use.
	taken := Config{Name: stays, Dir: t.TempDir(), Join: []string{"a", "b", "c"}}
	taken.Raft, taken.Peers = c.network.layer(t, "x", "/raft"), c.network.layer(t, "x", "/peers")
	_, stopTaken := launchAside(t, taken)
	cfg := c.cfgs[gone]
	cfg.Dir, cfg.Join = t.TempDir(), []string{stays}
	c.cfgs[gone] = cfg
	c.start(gone)
	c.awaitVoters(3)
	if err := stopTaken(); !errors.Is(err, errNameTaken) {
		t.Errorf("a second server of the name ends with %v", err)
	}
	c.same()
}

// TestMinority: without the others a server answers no fresh read and takes no
// write, and says so before long.
func TestMinority(t *testing.T) {
	c := newTrio(t)
	mustUpdate(t, c.stores["a"], put("k/1", "v"))
	c.same()
	name := c.leader().cfg.Name
	c.network.isolate(name, c.others(name)...)
	s := c.stores[name]
	if _, err := s.Sync(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("sync: %v", err)
	}
	if _, err := s.Update(t.Context(), put("k/2", "v")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("update: %v", err)
	}
	if e, _ := s.Get("k/1"); e == nil {
		t.Error("a stale read fails")
	}
	c.network.heal()
	c.same()
}
