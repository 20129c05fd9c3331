package store

import (
	"context"
	"time"
)

// flushRetry is the pause after a flush that failed.
const flushRetry = 10 * time.Second

// keepFlushed brings the state file up to the log when enough has gathered, or
// some time after the first write it lacks. An idle store is never woken.
func (s *Store) keepFlushed(ctx context.Context) error {
	timer := time.NewTimer(0)
	timer.Stop()
	armed, failing := false, false
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.fsm.changed:
			due = !failing && s.fsm.unflushed() >= s.cfg.tuning.flushBytes
		case <-timer.C:
			due, armed = true, false
		}
		if !due {
			if !armed {
				timer.Reset(s.cfg.tuning.flushDelay)
				armed = true
			}
			continue
		}
		err := s.flushAndTruncate()
		if err != nil {
			// The log still has it all; if it cannot grow, the next write will say so.
			s.cfg.Logger.Warn("state not flushed, trying again", "error", err, "after", flushRetry)
		}
		timer.Stop()
		if failing, armed = err != nil, err != nil; armed {
			timer.Reset(flushRetry)
		}
	}
}

// flushAndTruncate flushes, and drops from the log what the state file covers
// when the log has grown large.
func (s *Store) flushAndTruncate() error {
	if err := s.fsm.flush(); err != nil {
		return err
	}
	if s.log.used() < s.cfg.tuning.logBytes {
		return nil
	}
	return s.raft.Snapshot().Error()
}

// keepCompact forgets old history. It sleeps while there is none.
func (s *Store) keepCompact(ctx context.Context) error {
	step := s.retention.burst()
	timer := time.NewTimer(step)
	timer.Stop()
	for grown := s.memory.grown; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-grown:
		case <-timer.C:
		}
		if s.compact(time.Now()) {
			// Writes come faster than it pays to look: the timer looks again.
			timer.Reset(step)
			grown = nil
			continue
		}
		grown = s.memory.grown
	}
}

// compact forgets what is due by now and tells whether history is left.
func (s *Store) compact(now time.Time) bool {
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	var overflow int64
	if n := len(m.history.all) - s.retention.size; n > 0 {
		overflow = m.history.all[n-1].Revision()
	}
	m.history.compact(s.retention.due(now, m.revision, overflow))
	return len(m.history.all) > 0
}
