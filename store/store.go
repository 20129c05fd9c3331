// Package store is the replicated key-value store of the cluster: revisions
// over keys as etcd has them, a hashicorp/raft log that makes writes durable,
// and bbolt files that hold both. It knows bytes, keys and revisions, and
// nothing of Kubernetes.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"orch/internal/durable"
)

// Store is one server's replica. New does no I/O; Run opens the files, joins
// the Raft group and serves until ctx ends; Ready is closed when reads work.
type Store struct {
	cfg        Config
	memory     *mvcc
	leadership leadership
	reads      rounds
	elected    notice // told when Raft turns to another leader
	routed     notice // told when the route to the leader changes
	linked     notice // told when servers come or go, as the leader sees it
	commits    commits
	seeking    sync.WaitGroup // of those who look for the leader
	proposals  *proposer
	hclog      *raftLogger
	space      space

	ready     chan struct{}
	readyOnce sync.Once
	failed    atomic.Pointer[error] // why the store had to stop by itself
	failing   chan struct{}         // closed when failed is set
	down      chan struct{}         // closed when raft has shut down
	started   atomic.Bool
	stopping  atomic.Bool

	// Set by Run before ready is closed.
	log       *logStore
	state     *stateFile
	fsm       *fsm
	id        raft.ServerID
	group     atomic.Pointer[groupName]
	transport *transport
	peers     raft.StreamLayer
	raft      *raft.Raft
	retention retention
}

// New makes a store that Run brings to life.
func New(cfg Config) *Store {
	cfg = cfg.withDefaults()
	retention := retention{age: cfg.HistoryAge, size: cfg.HistorySize}
	s := &Store{
		cfg:       cfg,
		memory:    newMVCC(cfg.Codec, limit{events: retention.limit(), bytes: cfg.tuning.historyBytes}, cfg.Lane),
		hclog:     newRaftLogger(cfg.Logger),
		ready:     make(chan struct{}),
		failing:   make(chan struct{}),
		down:      make(chan struct{}),
		retention: retention,
		proposals: newProposer(randomID()),
		commits:   commits{heard: make(chan struct{}, 1)},
		space:     space{dir: cfg.Dir, logger: cfg.Logger, settle: func() {}},
	}
	s.space.starting.Store(true)
	return s
}

// Ready is closed when all that was ever acknowledged can be read here.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Run returns when everything it started has stopped: nil when ctx ended, else
// why the store could not go on. A store runs once.
func (s *Store) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("store: run twice")
	}
	// Watchers end, and writers that come now are refused, however Run ends.
	defer close(s.memory.closed)
	err := s.open()
	if noSpace(err) && s.space.giveBack() {
		err = errors.Join(s.close(), s.open())
	}
	if err != nil {
		return fmt.Errorf("open store: %w", errors.Join(err, s.close()))
	}
	s.space.hold()
	notices := make(chan bool, 16)
	if err := s.join(notices); err != nil {
		return fmt.Errorf("open store: %w", errors.Join(err, s.close()))
	}
	err = s.serve(ctx, notices)
	others := s.othersAddresses()
	err = errors.Join(err, s.close())
	if errors.Is(err, ErrSuperseded) {
		err = errors.Join(err, s.supersede(others))
	}
	return err
}

// serve runs the store's goroutines and stops them in order.
func (s *Store) serve(ctx context.Context, notices <-chan bool) error {
	group, ctx := errgroup.WithContext(ctx)
	// Raft hears the others until it is shut down.
	pumping, stopPumping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPumping()
	// asking is those who wait for an answer of raft's.
	var asking sync.WaitGroup
	ask := func(fn func() error) {
		asking.Add(1)
		group.Go(func() error { defer asking.Done(); return fn() })
	}
	ask(func() error { return s.follow(ctx, s.raft, notices) })
	ask(func() error { return s.proposals.settle(s.down) })
	group.Go(func() error { return s.proposals.run(ctx) })
	group.Go(func() error { return s.transport.run(pumping) })
	group.Go(func() error { return s.observe(ctx) })
	group.Go(func() error { return s.steer(ctx) })
	group.Go(func() error { return s.passCommits(ctx) })
	group.Go(func() error { return s.servePeers(ctx) })
	group.Go(func() error { return s.keepFlushed(ctx) })
	group.Go(func() error { return s.keepCompact(ctx) })
	group.Go(func() error { return s.keepSpace(ctx) })
	group.Go(func() error {
		select {
		case <-s.failing:
			return s.failure()
		case <-ctx.Done():
			return nil
		}
	})

	<-ctx.Done()
	if s.failure() == nil {
		s.Resign()
	}
	// First the reign ends and no more writes are taken, and those in flight get
	// their answer: raft forgets, when shut down, to answer those it was just
	// applying.
	s.stopping.Store(true)
	s.leadership.set(nil)
	s.proposals.close(s.unavailable(), true)
	answered := make(chan struct{})
	group.Go(func() error { asking.Wait(); close(answered); return nil })
	select {
	case <-answered:
	case <-time.After(drainTimeout): // no quorum: they are failed by the shutdown
	}
	// Then raft, which may be waiting inside the log for the store to give up.
	close(s.log.halted)
	shutdown := s.raft.Shutdown()
	s.transport.layer.hangUp() // raft waits for what it has asked the others
	err := errors.Join(shutdown.Error(), s.transport.Close())
	close(s.down)
	stopPumping()
	s.proposals.lose(s.unavailable())
	// Then ours: all of them end with ctx, or with the last future.
	err = errors.Join(group.Wait(), err)
	// With nobody applying any more, the next start has nothing to replay.
	if flushErr := s.fsm.flush(); flushErr != nil && !noSpace(flushErr) && s.failure() == nil {
		err = errors.Join(err, flushErr)
	}
	return err
}

// outcome waits for what raft answers. Raft forgets, when it is shut down, those
// whose turn had not come: they are told when over is closed.
func outcome(f raft.Future, over <-chan struct{}) error {
	answer := make(chan error, 1)
	var asking sync.WaitGroup // nobody waits for one that is forgotten
	asking.Go(func() { answer <- f.Error() })
	select {
	case err := <-answer:
		return err
	case <-over:
		return raft.ErrRaftShutdown
	}
}

// drainTimeout is how long a stopping store waits for writes in flight.
const drainTimeout = 2 * time.Second

// open reads the files.
func (s *Store) open() error {
	dir := s.cfg.Dir
	if err := errors.Join(undoSwap(dir), durable.MakeDir(dir)); err != nil {
		return err
	}
	if err := s.readJoin(); err != nil {
		return err
	}
	var err error
	// The log first: its lock says whether another process is at work here.
	if s.log, err = openLogStore(filepath.Join(dir, "raft.db"), &s.space, s.fail, &s.commits.appended); err != nil {
		return err
	}
	// Leftovers of a restore that was cut short. Their sender will send again.
	snapshots := &snapshotStore{dir: dir}
	for _, path := range []string{snapshots.spool(), filepath.Join(dir, "state.db.new")} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	state, h, entries, err := openStateFile(filepath.Join(dir, "state.db"), s.cfg.Codec)
	if err != nil {
		return err
	}
	s.state = state
	s.memory.reset(entries, h.revision)
	s.fsm = &fsm{
		memory: s.memory, state: s.state, proposals: s.proposals, snapshots: snapshots, space: &s.space, failed: s.fail, logger: s.cfg.Logger,
		head: h, flushed: h, dirty: make(map[string]record), changed: make(chan struct{}, 1),
	}
	snapshots.fsm = s.fsm
	s.space.settle = func() {
		s.fsm.flushing.Lock()
		defer s.fsm.flushing.Unlock()
	}
	return s.match(h)
}

// match refuses a state and a log that do not belong together: going on would
// lose acknowledged writes without a word.
func (s *Store) match(h head) error {
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	switch {
	case h.index > 0 && !s.log.has(keyTerm):
		return &CorruptError{s.log.path, errors.New("it is missing or empty, and held what state.db has not got yet")}
	case first > h.index+1:
		return &CorruptError{s.state.path, fmt.Errorf("it ends at log entry %d, but raft.db begins at %d", h.index, first)}
	case first == 0 && h.index == 0 && s.log.has(keyVoteTerm) && len(s.cfg.Join) == 0:
		return &CorruptError{s.state.path, errors.New("it is missing or empty, and raft.db holds only what came after it")}
	}
	return nil
}

// close closes the files that are open.
func (s *Store) close() error {
	// The state before the log, whose lock keeps others out.
	err := s.closeState()
	if s.log != nil {
		err = errors.Join(err, s.log.close())
	}
	if s.failure() != nil {
		// What could not be written may still look written in the page cache. Who
		// opens the files again must see what the disk has.
		for _, name := range []string{"state.db", "raft.db"} {
			_ = uncache(filepath.Join(s.cfg.Dir, name)) // the disk is failing already
		}
	}
	return err
}

// closeState may be called again.
func (s *Store) closeState() error {
	if s.state == nil {
		return nil
	}
	return s.state.close()
}

// fail makes the store stop because of err. The first call counts.
func (s *Store) fail(err error) {
	if s.failed.CompareAndSwap(nil, &err) {
		close(s.failing)
	}
}

func (s *Store) failure() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Revision is the newest revision applied here.
func (s *Store) Revision() int64 {
	s.memory.mu.RLock()
	defer s.memory.mu.RUnlock()
	return s.memory.revision
}

// CompactRevision is the oldest revision from which history is complete.
func (s *Store) CompactRevision() int64 {
	s.memory.mu.RLock()
	defer s.memory.mu.RUnlock()
	return s.memory.history.compacted
}

// Get reads a key as of now, from memory; nil when absent. The int64 is the
// revision read at.
func (s *Store) Get(key string) (*Entry, int64) {
	s.memory.mu.RLock()
	defer s.memory.mu.RUnlock()
	entry, _ := s.memory.now.Get(key)
	return entry, s.memory.revision
}

// Scan calls yield for the entries with prefix and key > after, in key order,
// as of revision at (0: now), until yield returns false. It gives the revision
// read at. Writers are not blocked while it runs.
func (s *Store) Scan(prefix, after string, at int64, yield func(*Entry) bool) (int64, error) {
	v, undone, err := s.memory.viewAt(prefix, at)
	if err != nil {
		return 0, err
	}
	v.scan(prefix, after, undone, yield)
	if at != 0 {
		return at, nil
	}
	return v.revision, nil
}

// Count gives the number of entries with prefix and key > after as of at.
func (s *Store) Count(prefix, after string, at int64) (int, error) {
	v, undone, err := s.memory.viewAt(prefix, at)
	if err != nil {
		return 0, err
	}
	return v.count(prefix, after, undone), nil
}

// Watch gives the events of keys with prefix, in commit order without gap,
// that happened after revision after. prefix must start with a whole first
// segment ("pods/").
func (s *Store) Watch(prefix string, after int64) (*Watcher, error) {
	return s.memory.watch(prefix, "", after)
}

// WatchLane is Watch for some of the events: those of the key lane, or those
// whose object is or was in the lane by Config.Lane.
func (s *Store) WatchLane(prefix, lane string, after int64) (*Watcher, error) {
	return s.memory.watch(prefix, lane, after)
}

// Compact forgets history before revision.
func (s *Store) Compact(revision int64) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	s.memory.history.compact(min(revision, s.memory.revision))
}
