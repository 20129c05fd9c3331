package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// leadership tells who leads: this server or not. A reign begins when this
// server was elected and has applied all earlier entries.
type leadership struct {
	mu      sync.Mutex
	reign   *reign        // nil while another server leads; guarded by mu
	changed chan struct{} // closed at the next change; guarded by mu
}

// reign is one stay in office.
type reign struct {
	term uint64
	over chan struct{}

	mu       sync.Mutex
	sessions map[uint64]*session     // of the other servers, by origin; guarded by mu
	pulses   map[raft.ServerID]pulse // guarded by mu
}

func (l *leadership) set(r *reign) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reign != nil {
		close(l.reign.over)
	}
	l.reign = r
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// now gives the reign, nil if there is none, and a channel that tells of the
// next change.
func (l *leadership) now() (*reign, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.reign, l.changed
}

// follow turns raft's notices into reigns until ctx ends.
func (s *Store) follow(ctx context.Context, r *raft.Raft, notices <-chan bool) error {
	for {
		select {
		case leads := <-notices:
			if !leads {
				s.leadership.set(nil)
				continue
			}
			// An empty proposal is behind every earlier entry, so once it is applied
			// all of them are. If it fails, the leadership is lost already.
			opening := r.Apply(appendProposalHeader(nil, 0, 0, 0, 0), 0)
			if outcome(opening, s.down) != nil {
				continue
			}
			term, ok := opening.Response().(uint64)
			if !ok {
				continue // the fsm has stopped, and the store does
			}
			s.leadership.set(&reign{
				term: term, over: make(chan struct{}),
				sessions: make(map[uint64]*session), pulses: make(map[raft.ServerID]pulse),
			})
			s.hclog.loud.Store(true)
		case <-ctx.Done():
			return nil
		}
	}
}

// IsLeader tells whether this server leads now.
func (s *Store) IsLeader() bool {
	s.leadership.mu.Lock()
	defer s.leadership.mu.Unlock()
	return s.leadership.reign != nil
}

// Lead runs fn each time this server becomes the Raft leader and has applied
// all earlier entries, under a context that ends with the leadership. Updates
// under that context never happen after it, not even when this server noticed
// its end late. Lead returns nil when ctx ends, ErrClosed when the store does,
// and fn's error when fn fails while still leading.
func (s *Store) Lead(ctx context.Context, fn func(ctx context.Context) error) error {
	var last *reign
	for {
		r, changed := s.leadership.now()
		if r != nil && r != last {
			last = r
			if err := r.run(ctx, fn); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-s.memory.closed:
			return ErrClosed
		}
	}
}

type reignKey struct{}

// reignOf is the reign that ctx belongs to, nil for none.
func reignOf(ctx context.Context) *reign {
	r, _ := ctx.Value(reignKey{}).(*reign)
	return r
}

// run runs fn under a context that ends with the reign. Only what fn returns
// while the reign lasts is an error.
func (r *reign) run(ctx context.Context, fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, reignKey{}, r))
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-r.over:
			cancel(ErrNotLeader)
		case <-ctx.Done():
		}
	})
	err := fn(ctx)
	ended := ctx.Err() != nil
	// A write that was fenced off tells of the end before the notice does.
	if errors.Is(err, ErrNotLeader) {
		<-ctx.Done()
		ended = true
	}
	cancel(nil)
	watch.Wait()
	if ended {
		return nil
	}
	return err
}

// Sync waits until reads here see every write acknowledged anywhere before the
// call (a read index), and gives the revision reached. It writes nothing; a
// server that is alone needs to ask nobody, and callers at the same time share
// one question to the others.
func (s *Store) Sync(ctx context.Context) (int64, error) {
	if s.IsLeader() && s.alone() {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return s.Revision(), nil
	}
	index, err := s.reads.do(ctx, s.askIndex)
	if err != nil {
		return 0, err
	}
	if err := s.reach(ctx, index, nil); err != nil {
		return 0, err
	}
	return s.Revision(), nil
}

// askIndex asks the leader which entry a reader must have applied.
func (s *Store) askIndex() (uint64, error) {
	for {
		changed := s.routed.wait()
		r, err := s.proposals.current()
		if err != nil {
			return 0, err
		}
		if r != nil {
			if index, err := r.read(); err == nil {
				return index, nil
			}
			select { // it failed because the route is over, or will be at once
			case <-r.over:
			case <-s.memory.closed:
			}
			continue
		}
		select {
		case <-changed:
		case <-s.memory.closed:
			return 0, s.unavailable()
		}
	}
}

// readIndex is the entry that a reader anywhere must have applied to see all
// that was acknowledged before the call. Only the leader can tell, once the
// others confirm that it still leads.
func (s *Store) readIndex(r *reign) (uint64, error) {
	committed := s.raft.CommitIndex()
	if !s.alone() {
		if err := outcome(s.raft.VerifyLeader(), s.down); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
	}
	// All entries of a reign, from its opening on, pass through the fsm.
	for {
		moved := s.fsm.progress.wait()
		if last := s.fsm.applied(); last.index >= committed {
			return last.index, nil
		}
		select {
		case <-moved:
		case <-r.over:
			return 0, ErrNotLeader
		}
	}
}

// alone tells whether this server is the only voter.
func (s *Store) alone() bool {
	s.memory.mu.RLock()
	defer s.memory.mu.RUnlock()
	return s.fsm.head.alone()
}

func (h head) alone() bool {
	voters := 0
	for _, server := range h.configuration.Servers {
		if server.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1
}
