package pod

import (
	"context"
	"sync"
	"time"
)

// mailbox hands closures to the goroutine that owns a worker's state.
type mailbox struct {
	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (m *mailbox) post(f func()) {
	m.mu.Lock()
	m.queue = append(m.queue, f)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = nil
	return q
}

// wait returns when there is mail, when the time until has come (zero: never)
// or when ctx ends.
func (m *mailbox) wait(ctx context.Context, now, until time.Time) {
	var due <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(max(0, until.Sub(now)))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-m.wake:
	case <-due:
	case <-ctx.Done():
	}
}
