package api

import (
	"context"
	"slices"
	"sync"
	"time"
)

// slots are how many requests of one sort may be served at once. When all are
// taken, further ones wait, each user's in a queue of their own, and a slot that
// falls free goes to the next user in turn: one who sends thousands of requests
// holds the others up by one each.
type slots struct {
	size     int
	patience time.Duration // longest wait

	mu     sync.Mutex
	free   int               // none while requests wait
	queues map[string]*queue // by user; none is empty
	turns  []*queue          // the next one first; those that emptied meanwhile are passed over
}

// queue holds the requests of one user that wait, the oldest first. Each one's
// channel is closed when it has a slot.
type queue struct {
	user    string
	waiting []chan struct{}
}

// waitingPerSlot bounds the requests that wait, for they take memory.
const waitingPerSlot = 10

func newSlots(size int, patience time.Duration) *slots {
	return &slots{size: size, patience: patience, free: size, queues: make(map[string]*queue)}
}

// try takes a slot if one is free.
func (s *slots) try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		return false
	}
	s.free--
	return true
}

// take waits for a slot. It fails when there is none in time, or when the user
// has their share of the requests that may wait.
func (s *slots) take(ctx context.Context, user string) bool {
	if s.try() {
		return true
	}
	turn := s.enqueue(user)
	if turn == nil {
		return false
	}
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	select {
	case <-turn:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return !s.leave(user, turn)
}

// enqueue gives what tells a request of its slot; nil: too many wait.
func (s *slots) enqueue(user string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	turn := make(chan struct{})
	if s.free > 0 { // since try
		s.free--
		close(turn)
		return turn
	}
	q := s.queues[user]
	if q == nil {
		q = &queue{user: user}
		s.queues[user] = q
		s.turns = append(s.turns, q)
	} else if len(q.waiting) >= s.size*waitingPerSlot/len(s.queues) {
		return nil
	}
	q.waiting = append(q.waiting, turn)
	return turn
}

// leave ends a wait; false: the slot was given just now.
func (s *slots) leave(user string, turn chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[user]
	if q == nil {
		return false
	}
	i := slices.Index(q.waiting, turn)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	if len(q.waiting) == 0 {
		delete(s.queues, user)
	}
	return true
}

// release gives a slot back, or on to the next user's first request.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.turns) > 0 {
		q := s.turns[0]
		s.turns = s.turns[1:]
		if len(q.waiting) == 0 {
			continue
		}
		close(q.waiting[0])
		q.waiting = q.waiting[1:]
		if len(q.waiting) > 0 {
			s.turns = append(s.turns, q)
		} else {
			delete(s.queues, q.user)
		}
		return
	}
	s.free++
}

// serving and waiting count requests, for the metrics.
func (s *slots) serving() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size - s.free
}

func (s *slots) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, q := range s.queues {
		n += len(q.waiting)
	}
	return n
}
