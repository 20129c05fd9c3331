package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// Update applies ops in order, all or none, and returns their entries: for a
// deletion the tombstone, or nil when there was nothing to delete. It returns
// once the write is durable on a quorum and visible to reads here. Any server
// takes it; it waits a while for a leader. When ctx ends first, the write may
// still happen. Under the context of Lead, it happens within that reign or not
// at all.
func (s *Store) Update(ctx context.Context, ops ...Op) ([]*Entry, error) {
	ops = slices.Clone(ops)
	for i := range ops {
		if n := len(ops[i].Key); n == 0 || n > bolt.MaxKeySize {
			return nil, fmt.Errorf("store: a key must have 1 to %d bytes, not %d", bolt.MaxKeySize, n)
		}
		if ops[i].Expect < Any {
			return nil, fmt.Errorf("store: no revision is %d", ops[i].Expect)
		}
	}
	if err := decode(s.memory.codec, ops); err != nil {
		return nil, err
	}
	if err := s.precheck(ctx, ops); err != nil {
		return nil, err
	}
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	u := &update{ops: ops, reign: reignOf(ctx), done: make(chan struct{})}
	if err := s.proposals.add(u); err != nil {
		return nil, err
	}
	select {
	case <-u.done:
		return u.entries, u.err
	case <-ctx.Done():
		u.abandoned.Store(true)
		return nil, context.Cause(ctx)
	}
}

// precheck finds conflicts that need no round through the log. What conflicts
// with memory conflicts for certain once memory has all that was acknowledged.
func (s *Store) precheck(ctx context.Context, ops []Op) error {
	select {
	case <-s.ready:
	default:
		return s.awaitReady(ctx)
	}
	err := s.memory.precheck(ops)
	if err == nil || s.alone() && s.IsLeader() {
		return err
	}
	if _, err := s.Sync(ctx); err != nil {
		return err
	}
	return s.memory.precheck(ops)
}

// awaitReady: before that there is nobody to queue for.
func (s *Store) awaitReady(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.memory.closed:
		return s.unavailable()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// update is one caller's Update on its way.
type update struct {
	ops       []Op
	reign     *reign // the only one in which it may happen; nil: any
	abandoned atomic.Bool
	entries   []*Entry
	err       error
	done      chan struct{} // closed when entries and err are final
}

func (u *update) finish(err error) {
	if err != nil {
		u.entries, u.err = nil, err
	}
	close(u.done)
}

// batch is the updates that share a log entry.
type batch struct {
	sequence uint64
	term     uint64
	waiting  []*update
	data     []byte // the proposal
}

func (b *batch) updates() [][]Op {
	updates := make([][]Op, len(b.waiting))
	for i, u := range b.waiting {
		updates[i] = u.ops
	}
	return updates
}

// finish lets the callers go. With an error none of the updates was applied, as
// far as anyone can tell here.
func (b *batch) finish(err error) {
	for _, u := range b.waiting {
		u.finish(err)
	}
}

// unavailable says why nothing can be asked of the store now.
func (s *Store) unavailable() error {
	if err := s.failure(); err != nil {
		return err
	}
	if s.stopping.Load() {
		return ErrClosed
	}
	return ErrNotLeader
}

// refused tells whether an error of Raft's says that a proposal never reached
// the log. After any other it may be there.
func refused(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress)
}
