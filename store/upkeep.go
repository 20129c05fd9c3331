package store

import (
	"context"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	// flushRetry is the pause after a flush that failed.
	flushRetry = 10 * time.Second
	// firstFlush is the delay of the first flush: a start writes more than what
	// follows.
	firstFlush = 10 * time.Second
)

// keepFlushed brings the state file up to the log when enough has gathered, or
// some time after the first write it lacks. An idle store is never woken.
func (s *Store) keepFlushed(ctx context.Context) error {
	timer := time.NewTimer(0)
	timer.Stop()
	armed, failing := false, false
	delay := min(firstFlush, s.cfg.tuning.flushDelay)
	for {
		due, quiet := false, false
		select {
		case <-ctx.Done():
			return nil
		case <-s.fsm.changed:
			due = !failing && s.fsm.unflushed() >= s.cfg.tuning.flushBytes
		case <-timer.C:
			due, quiet, armed = true, true, false
		}
		if !due {
			if !armed {
				timer.Reset(delay)
				armed = true
			}
			continue
		}
		delay = s.cfg.tuning.flushDelay
		err := s.flushAndTruncate()
		s.letGo(quiet)
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

// letGo unmaps the pages of both files, for a flush touches all of them, of which
// few are in use, and drops them from the page cache when there is little to do:
// what was written in one go is one folio there, and when a page of it changes,
// the kernel counts all of it as written, and some file systems write it all.
func (s *Store) letGo(quiet bool) {
	s.state.mu.RLock()
	defer s.state.mu.RUnlock()
	for path, db := range map[string]*bolt.DB{s.log.path: s.log.db, s.state.path: s.state.db} {
		err := unmapPages(db)
		if err == nil && quiet {
			err = uncache(path)
		}
		if err != nil {
			s.cfg.Logger.Debug("pages stay in memory", "file", path, "error", err)
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
