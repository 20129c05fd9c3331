package api

import (
	"context"
	"errors"
	"sync"
)

// errClosing is the cause that ends streams when the server shuts down.
var errClosing = errors.New("server is shutting down")

// streams are the requests that last: watches, logs, exec. The zero value is ready.
type streams struct {
	mu     sync.Mutex
	closed bool
	open   map[*context.CancelCauseFunc]struct{}
}

// add gives a context that also ends when the server closes; done must be called.
func (s *streams) add(parent context.Context) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(parent)
	key := &cancel
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		cancel(errClosing)
		return ctx, func() {}
	}
	if s.open == nil {
		s.open = make(map[*context.CancelCauseFunc]struct{})
	}
	s.open[key] = struct{}{}
	return ctx, func() {
		s.mu.Lock()
		delete(s.open, key)
		s.mu.Unlock()
		cancel(nil)
	}
}

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for cancel := range s.open {
		(*cancel)(errClosing)
	}
}
