package store

import (
	"context"
	"sync"
)

// rounds answers many callers with one question. A caller never gets the answer
// to a question that was put before it came.
type rounds struct {
	mu      sync.Mutex
	next    *round // not yet asked; guarded by mu
	running *round // guarded by mu
}

type round struct {
	after <-chan struct{} // closed when the round before is over; nil: there is none
	done  chan struct{}   // closed when index and err are final
	index uint64
	err   error
}

// do has one of the callers ask. ask must be bounded by itself: others wait for
// it too.
func (r *rounds) do(ctx context.Context, ask func() (uint64, error)) (uint64, error) {
	r.mu.Lock()
	n := r.next
	first := n == nil
	if first {
		n = &round{done: make(chan struct{})}
		if r.running != nil {
			n.after = r.running.done
		}
		r.next = n
	}
	r.mu.Unlock()
	if first {
		r.ask(n, ask)
		return n.index, n.err
	}
	select {
	case <-n.done:
		return n.index, n.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (r *rounds) ask(n *round, ask func() (uint64, error)) {
	if n.after != nil {
		<-n.after
	}
	r.mu.Lock()
	r.next, r.running = nil, n
	r.mu.Unlock()
	n.index, n.err = ask()
	close(n.done)
	r.mu.Lock()
	if r.running == n {
		r.running = nil
	}
	r.mu.Unlock()
}
