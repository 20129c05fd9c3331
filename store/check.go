package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Check verifies the files against memory and memory in itself. It flushes
// first; writes may go on meanwhile.
func (s *Store) Check(ctx context.Context) error {
	if err := s.memory.verify(); err != nil {
		return fmt.Errorf("check memory: %w", err)
	}
	v, err := s.fsm.settled()
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	defer s.fsm.flushing.Unlock()
	if err := errors.Join(s.state.verify(ctx, v, s.fsm.flushed), verifyPages(s.state.db)); err != nil {
		return fmt.Errorf("check %s: %w", s.state.path, err)
	}
	if err := errors.Join(s.log.verify(ctx, s.fsm.flushed.index), verifyPages(s.log.db)); err != nil {
		return fmt.Errorf("check %s: %w", s.log.path, err)
	}
	return nil
}

// settled gives the view that the state file holds, and holds flushing locked so
// that it stays so.
func (f *fsm) settled() (*view, error) {
	for {
		if err := f.flush(); err != nil {
			return nil, err
		}
		f.flushing.Lock()
		f.memory.mu.Lock()
		same, v := f.head.index == f.flushed.index, f.memory.viewLocked()
		f.memory.mu.Unlock()
		if same {
			return v, nil
		}
		f.flushing.Unlock()
	}
}

// verify checks what must always hold of the events and entries in memory.
func (m *mvcc) verify() error {
	m.mu.Lock()
	v := m.viewLocked()
	all, compacted := m.history.all, m.history.compacted
	logged := 0
	for resource, l := range m.history.resources {
		logged += len(l.events)
		if err := inOrder(l.events, resource); err != nil {
			m.mu.Unlock()
			return err
		}
	}
	m.mu.Unlock()
	if err := inOrder(all, ""); err != nil {
		return err
	}
	if n := len(all); logged != n || n > 0 && (all[0].Revision() <= compacted || all[n-1].Revision() > v.revision) {
		return errors.New("the history and its resources' logs differ")
	}
	last := ""
	var bad error
	v.entries.Scan(func(key string, e *Entry) bool {
		if key != e.Key || key <= last && last != "" || e.CreateRevision < 1 || e.CreateRevision > e.ModRevision || e.ModRevision > v.revision {
			bad = fmt.Errorf("entry %q of revisions %d, %d is out of place", e.Key, e.CreateRevision, e.ModRevision)
		}
		last = key
		return bad == nil
	})
	return bad
}

func inOrder(events []*Event, resource string) error {
	for i, e := range events {
		if i > 0 && events[i-1].Revision() >= e.Revision() || resource != "" && resourceOf(e.Entry.Key) != resource {
			return fmt.Errorf("event %d of %q is out of order", e.Revision(), resource)
		}
	}
	return nil
}

// verify compares the file with the view it should hold.
func (f *stateFile) verify(ctx context.Context, v *view, h head) error {
	return f.view(func(stored head, keys *bolt.Bucket) error {
		if stored.index != h.index || stored.revision != h.revision || h.revision != v.revision {
			return fmt.Errorf("head is %d at revision %d instead of %d at %d", stored.index, stored.revision, h.index, v.revision)
		}
		n := 0
		err := keys.ForEach(func(key, value []byte) error {
			n++
			r, err := decodeRecord(key, value)
			if err == nil {
				err = v.holds(string(key), r)
			}
			return errors.Join(err, ctx.Err())
		})
		if err == nil && n != v.entries.Len() {
			err = fmt.Errorf("%d keys instead of %d", n, v.entries.Len())
		}
		return err
	})
}

func (v *view) holds(key string, r record) error {
	e, ok := v.entries.Get(key)
	if !ok || e.CreateRevision != r.create || e.ModRevision != r.mod {
		return fmt.Errorf("key %q is not as in memory", key)
	}
	if b, ok := e.Object.([]byte); ok && !bytes.Equal(b, r.value) {
		return fmt.Errorf("value of %q is not as in memory", key)
	}
	return nil
}

// verify checks that the log has no gap after the entry that the state covers.
func (l *logStore) verify(ctx context.Context, covered uint64) error {
	return l.db.View(func(tx *bolt.Tx) error {
		next := uint64(0)
		return tx.Bucket(bucketLog).ForEach(func(key, value []byte) error {
			if err := l.visit(bucketLog, key, value); err != nil {
				return err
			}
			log, err := decodeLog(key, value[sumSize:])
			if err != nil {
				return err
			}
			if next != 0 && log.Index != next && log.Index > covered {
				return fmt.Errorf("entry %d follows %d", log.Index, next-1)
			}
			next = log.Index + 1
			return ctx.Err()
		})
	})
}

// verifyPages checks the pages of a file. The transaction could write, so that
// nobody else does: bbolt's check looks at the free pages of right now.
func verifyPages(db *bolt.DB) error {
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var first error
	for err := range tx.Check() {
		if first == nil {
			first = err
		}
	}
	return first
}
