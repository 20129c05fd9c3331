package store

import (
	"context"
	"sync"
)

// notice wakes those who wait for a next time.
type notice struct {
	mu   sync.Mutex
	next chan struct{} // closed by the next tell; nil while nobody waits; guarded by mu
}

// wait gives a channel that the next tell closes. Look at what is told of after
// it, so that nothing slips in between.
func (n *notice) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

func (n *notice) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}

// applied is the newest entry in memory, as the fsm met it.
func (f *fsm) applied() position {
	f.memory.mu.RLock()
	defer f.memory.mu.RUnlock()
	return f.last
}

// reach waits until all entries that change anything, up to index, are applied.
func (s *Store) reach(ctx context.Context, index uint64, over <-chan struct{}) error {
	for {
		moved := s.fsm.progress.wait()
		if s.fsm.current().index >= index {
			return nil
		}
		select {
		case <-moved:
		case <-over:
			return ErrNotLeader
		case <-s.memory.closed:
			return s.unavailable()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// decodedProposals holds what other servers' proposals say, decoded before they
// are applied, which happens on one goroutine. Only a leader has any.
type decodedProposals struct {
	mu      sync.Mutex
	updates map[proposalName][][]Op // guarded by mu
}

type proposalName struct{ origin, sequence uint64 }

func (d *decodedProposals) put(origin, sequence uint64, updates [][]Op) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.updates == nil {
		d.updates = make(map[proposalName][][]Op)
	}
	d.updates[proposalName{origin, sequence}] = updates
}

func (d *decodedProposals) take(origin, sequence uint64) [][]Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := proposalName{origin, sequence}
	updates := d.updates[name]
	delete(d.updates, name)
	return updates
}
