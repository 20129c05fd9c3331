// Package fairness decides whose request is served next, and how much the
// requests of one user may hold meanwhile: the queueing core of API Priority and
// Fairness (KEP-1040), with fixed priority levels.
package fairness

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Reasons why a request is refused, in upstream's words for
// apiserver_flowcontrol_rejected_requests_total.
var (
	ErrQueueFull = errors.New("queue-full")
	ErrTimeOut   = errors.New("time-out")
)

// Limits of a priority level.
type Limits struct {
	Seats      int           // requests that are worked on at once
	Queued     int           // requests of all flows that wait for a seat
	FlowQueued int           // of one flow
	Patience   time.Duration // longest wait

	Bytes     int64 // what all requests of the level may hold in memory, by estimate
	FlowBytes int64 // of one flow
}

// Level is a priority level: seats of its own, which no other level can take.
// When all are taken, requests wait, those of each flow (a user) in a queue of
// their own, and a seat that falls free goes to the next flow in turn: one who
// sends thousands of requests holds the others up by one each.
type Level struct {
	Name   string
	limits Limits

	mu      sync.Mutex // guards everything below
	free    int        // none while requests wait
	waiting int
	flows   map[string]*queue // those with requests that wait
	turns   []*queue          // the same ones, the next one first
	held    map[string]int64  // bytes by flow; none is 0
	total   int64             // the sum of held
	refused map[error]int64   // counts for the metrics
}

// queue holds the requests of one flow that wait, the oldest first.
type queue struct {
	flow    string
	waiting []*waiter
}

// waiter is a request that waits; it is told once: nil, here is your seat, or
// why there is none.
type waiter struct{ verdict chan error }

// NewLevel makes a level with all seats free.
func NewLevel(name string, limits Limits) *Level {
	return &Level{
		Name: name, limits: limits, free: limits.Seats,
		flows: make(map[string]*queue), held: make(map[string]int64), refused: make(map[error]int64),
	}
}

// Try takes a seat if one is free.
func (l *Level) Try() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free == 0 {
		return false
	}
	l.free--
	return true
}

// Acquire waits for a seat, which Release must give back. Without one the error
// is ErrQueueFull, ErrTimeOut, or why ctx ended.
func (l *Level) Acquire(ctx context.Context, flow string) error {
	w, err := l.enqueue(flow, false)
	if w == nil {
		return err
	}
	timer := time.NewTimer(l.limits.Patience)
	defer timer.Stop()
	select {
	case err := <-w.verdict:
		return err
	case <-timer.C:
		return l.giveUp(flow, w, ErrTimeOut)
	case <-ctx.Done():
		return l.giveUp(flow, w, context.Cause(ctx))
	}
}

// Resume waits for a seat for work that was begun and paused: it comes before
// the flow's other requests, no queue is too full for it, and only ctx ends it.
func (l *Level) Resume(ctx context.Context, flow string) error {
	w, _ := l.enqueue(flow, true)
	if w == nil {
		return nil
	}
	select {
	case err := <-w.verdict:
		return err
	case <-ctx.Done():
		return l.giveUp(flow, w, context.Cause(ctx))
	}
}

// Release gives a seat back, or on to the next flow's first request.
func (l *Level) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.turns) == 0 {
		l.free++
		return
	}
	q := l.turns[0]
	l.turns = l.turns[1:]
	q.waiting[0].verdict <- nil
	q.waiting = q.waiting[1:]
	l.waiting--
	if len(q.waiting) > 0 {
		l.turns = append(l.turns, q)
	} else {
		delete(l.flows, q.flow)
	}
}

// enqueue gives a place in the queue of the flow. Without one there is a seat
// (nil), or there are too many.
func (l *Level) enqueue(flow string, front bool) (*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free > 0 {
		l.free--
		return nil, nil
	}
	q := l.flows[flow]
	if !front && !l.room(q) {
		l.refused[ErrQueueFull]++
		return nil, ErrQueueFull
	}
	if q == nil {
		q = &queue{flow: flow}
		l.flows[flow] = q
		l.turns = append(l.turns, q)
	}
	w := &waiter{make(chan error, 1)}
	at := len(q.waiting)
	if front {
		at = 0
	}
	q.waiting = slices.Insert(q.waiting, at, w)
	l.waiting++
	return w, nil
}

// room tells whether one more request of q may wait. Where the level is full,
// the longest queue loses its last request to a shorter one.
func (l *Level) room(q *queue) bool {
	own := 0
	if q != nil {
		own = len(q.waiting)
	}
	if own >= l.limits.FlowQueued {
		return false
	}
	if l.waiting < l.limits.Queued {
		return true
	}
	var longest *queue
	for _, other := range l.turns {
		if longest == nil || len(other.waiting) > len(longest.waiting) {
			longest = other
		}
	}
	if longest == nil || len(longest.waiting) <= own+1 {
		return false
	}
	last := len(longest.waiting) - 1
	longest.waiting[last].verdict <- ErrQueueFull
	longest.waiting = longest.waiting[:last]
	l.waiting--
	l.refused[ErrQueueFull]++
	return true
}

// giveUp ends a wait for the reason why, unless the verdict came just now.
func (l *Level) giveUp(flow string, w *waiter, why error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case err := <-w.verdict:
		return err
	default:
	}
	q := l.flows[flow]
	i := slices.Index(q.waiting, w)
	q.waiting = slices.Delete(q.waiting, i, i+1)
	l.waiting--
	if len(q.waiting) == 0 {
		delete(l.flows, flow)
		i := slices.Index(l.turns, q)
		l.turns = slices.Delete(l.turns, i, i+1)
	}
	if errors.Is(why, ErrTimeOut) {
		l.refused[ErrTimeOut]++
	}
	return why
}
