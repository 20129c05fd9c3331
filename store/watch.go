package store

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
)

// Watcher is a cursor into the shared history; a slow one costs nothing. Next
// is for one goroutine at a time, Stop for any.
type Watcher struct {
	memory *mvcc
	prefix string
	whole  bool // prefix is a whole resource: nothing needs filtering
	log    *eventLog
	lane   string // whose events log has; "": all of the resource

	seen atomic.Int64 // everything up to this revision has been given out
	stop sync.Once
	over chan struct{}
}

// watch places a cursor after revision after.
func (m *mvcc) watch(prefix, lane string, after int64) (*Watcher, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if after > m.revision {
		return nil, ErrFutureRevision
	}
	if after < m.history.compacted {
		return nil, ErrCompacted
	}
	resource := resourceOf(prefix)
	w := &Watcher{memory: m, prefix: prefix, whole: prefix == resource || prefix == lane, lane: lane, over: make(chan struct{})}
	if lane == "" {
		w.log = m.history.log(resource)
	} else {
		w.log = &m.enterLane(resource, lane, after).eventLog
	}
	w.seen.Store(after)
	return w, nil
}

// Next blocks until there is at least one event, or until Stop is called, the
// store ends or ctx does. It gives the events and the revision up to which the
// watcher has now seen everything (for bookmarks). ErrCompacted when it fell
// behind the history kept.
func (w *Watcher) Next(ctx context.Context) ([]*Event, int64, error) { return w.NextOr(ctx, nil) }

// NextOr is Next that also returns, without events, when wake is closed.
func (w *Watcher) NextOr(ctx context.Context, wake <-chan struct{}) ([]*Event, int64, error) {
	for {
		events, revision, changed, err := w.look()
		if err != nil {
			return nil, 0, err
		}
		w.seen.Store(revision)
		if len(events) > 0 {
			return events, revision, nil
		}
		if changed == nil {
			continue
		}
		select {
		case <-changed:
		case <-wake:
			return nil, revision, nil
		case <-ctx.Done():
			return nil, revision, context.Cause(ctx)
		case <-w.over:
			return nil, revision, ErrClosed
		case <-w.memory.closed:
			return nil, revision, ErrClosed
		}
	}
}

// look gives what is pending or, when the resource has nothing new, a channel
// that tells of its next event. Neither: all that was new has other prefixes.
func (w *Watcher) look() (events []*Event, revision int64, changed <-chan struct{}, err error) {
	m := w.memory
	m.mu.RLock()
	seen := w.seen.Load()
	if seen < w.log.forgotten {
		m.mu.RUnlock()
		return nil, 0, nil, ErrCompacted
	}
	events, revision = since(w.log.events, seen), m.revision
	if len(events) == 0 {
		changed = w.log.wait()
	}
	m.mu.RUnlock()

	if !w.whole {
		events = w.filter(events)
	}
	return events, revision, changed, nil
}

func (w *Watcher) filter(events []*Event) []*Event {
	matching := events[:0:0]
	for _, e := range events {
		if strings.HasPrefix(e.Entry.Key, w.prefix) {
			matching = append(matching, e)
		}
	}
	return matching
}

// Progress is the newest revision up to which no event is pending for w.
func (w *Watcher) Progress() int64 {
	w.memory.mu.RLock()
	defer w.memory.mu.RUnlock()
	seen := w.seen.Load()
	if seen < w.log.forgotten {
		return seen
	}
	for _, e := range since(w.log.events, seen) {
		if w.whole || strings.HasPrefix(e.Entry.Key, w.prefix) {
			return e.Revision() - 1
		}
	}
	return w.memory.revision
}

// Stop ends the watch; a blocked Next returns ErrClosed.
func (w *Watcher) Stop() {
	w.stop.Do(func() {
		close(w.over)
		if w.lane != "" {
			w.memory.leaveLane(w.lane)
		}
	})
}
