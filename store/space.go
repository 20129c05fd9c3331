package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrReadOnly says that no write is taken since this server's disk is full. The
// store takes writes again by itself when there is space.
var ErrReadOnly = errors.New("the store is read-only")

// ReadOnlyError names the disk.
type ReadOnlyError struct{ Dir string }

func (e *ReadOnlyError) Error() string {
	return fmt.Sprintf("%v: no space left on the disk of %s: free some, and writes are taken again by themselves", ErrReadOnly, e.Dir)
}

func (e *ReadOnlyError) Unwrap() []error { return []error{ErrReadOnly, syscall.ENOSPC} }

const (
	// reserveSize is kept free for the store: what is under way when the disk
	// turns out to be full is written into it, and so is what a start needs. Small
	// disks keep an eighth.
	reserveSize = 8 << 20
	// spaceCheck is how often a full disk is looked at.
	spaceCheck = time.Second
	// leadAgain is after how many looks at its full disk a leader tries again to
	// hand over the lead: there may be nobody better.
	leadAgain = 10
)

// space is the room on the disk of the store's files. While there is some, a file
// of reserveSize bytes holds a part of it back; the first write that meets a full
// disk gives that back and makes the store read-only. Writes to the log that find
// no room even so wait for it: nothing is lost, and Raft needs not be stopped.
type space struct {
	dir     string
	logger  *slog.Logger
	changed notice // told when full has changed
	// settle waits until nobody writes who could do without.
	settle func()
	// starting is set until the store is ready.
	starting atomic.Bool

	mu   sync.Mutex
	full bool          // guarded by mu
	room chan struct{} // closed when there is space again; guarded by mu
}

func (s *space) reserve() string { return filepath.Join(s.dir, "reserve") }

// noSpace reports whether a write failed for want of space or quota. When bbolt
// cannot make its file longer, of the cause only the text is left.
func noSpace(err error) bool {
	for _, cause := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, cause) {
			return true
		}
		if err != nil && strings.Contains(err.Error(), "file resize error: ") && strings.HasSuffix(err.Error(), cause.Error()) {
			return true
		}
	}
	return false
}

// hold keeps the reserve, and reports whether there is room beside it.
func (s *space) hold() bool {
	size, free, err := s.measure()
	if err != nil {
		return false
	}
	var held int64
	if info, err := os.Stat(s.reserve()); err == nil {
		held = info.Size()
	}
	// As much again: a disk that is full the next moment has not become any better.
	if held+free < 2*size {
		return false
	}
	if held >= size || size == 0 { // some file systems do not tell
		return true
	}
	if err := allocate(s.reserve(), size); err != nil {
		s.logger.Debug("no reserve on the disk", "dir", s.dir, "error", err)
		return !noSpace(err) // a file system without allocation goes without
	}
	return true
}

// measure gives the bytes of a whole reserve, and how many are free.
func (s *space) measure() (reserve, free int64, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(s.dir, &disk); err != nil {
		return 0, 0, err
	}
	return min(reserveSize, int64(disk.Blocks)*disk.Bsize/8), int64(disk.Bavail) * disk.Bsize, nil
}

// allocate makes a file that occupies size bytes.
func allocate(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return errors.Join(err, file.Close())
}

// giveBack makes room by halving the reserve, and reports whether it could. The
// last quarter is for the next start, which may find that others have taken all
// the rest.
func (s *space) giveBack() bool {
	if s.starting.Load() {
		return os.Remove(s.reserve()) == nil
	}
	info, err := os.Stat(s.reserve())
	if err != nil {
		return false
	}
	whole, _, err := s.measure()
	if err != nil || info.Size() <= whole/4 {
		return false
	}
	return os.Truncate(s.reserve(), info.Size()/2) == nil
}

// isFull reports whether the store is read-only.
func (s *space) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func (s *space) readOnly() error {
	if s.isFull() {
		return &ReadOnlyError{s.dir}
	}
	return nil
}

// exhausted notes that a write has met a full disk, and gives a channel that is
// closed when there is space.
func (s *space) exhausted() (room <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full {
		s.full, s.room = true, make(chan struct{})
		s.logger.Error("no space left on the disk of the store, which takes no more writes until there is", "dir", s.dir)
		s.changed.tell()
	}
	return s.room
}

// recovered ends what exhausted began.
func (s *space) recovered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		s.full = false
		close(s.room)
		s.logger.Info("the disk of the store has space again, and writes are taken", "dir", s.dir)
		s.changed.tell()
	}
}

// insist repeats a write until it does not fail for want of space. It gives up
// with ErrClosed when halted is closed. Without a space it tries once.
func (s *space) insist(halted <-chan struct{}, write func() error) error {
	for {
		err := write()
		if s == nil || !noSpace(err) {
			return err
		}
		room := s.exhausted()
		s.settle()
		if s.giveBack() {
			continue
		}
		select {
		case <-room:
		case <-time.After(spaceCheck): // some of what was freed may do
		case <-halted:
			return ErrClosed
		}
	}
}

// keepSpace looks at a full disk until it has room. A leader leaves the lead to a
// server that can write.
func (s *Store) keepSpace(ctx context.Context) error {
	for {
		changed := s.space.changed.wait()
		if !s.space.isFull() {
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		s.Resign()
		for range leadAgain {
			select {
			case <-time.After(spaceCheck):
			case <-ctx.Done():
				return nil
			}
			if s.space.hold() {
				s.space.recovered()
				break
			}
		}
	}
}

// ReadOnly is nil while this server's disk takes writes, else why it does not.
func (s *Store) ReadOnly() error { return s.space.readOnly() }

// ReadOnlyChanged gives a channel that is closed when ReadOnly may have changed.
func (s *Store) ReadOnlyChanged() <-chan struct{} { return s.space.changed.wait() }

type lastWords struct{}

// LastWords gives a context whose Updates are taken by a read-only store too:
// they say that it is. They must be few, as the reserve is small.
func LastWords(ctx context.Context) context.Context {
	return context.WithValue(ctx, lastWords{}, true)
}

// writable refuses an Update while the disk of the leader, which is here, is
// full. Work of the leader's own waits for space instead: it is never given up.
func (s *Store) writable(ctx context.Context) error {
	for s.space.isFull() && s.IsLeader() && ctx.Value(lastWords{}) == nil {
		if reignOf(ctx) == nil {
			return &ReadOnlyError{s.cfg.Dir}
		}
		changed := s.space.changed.wait()
		if !s.space.isFull() {
			break
		}
		select {
		case <-changed:
		case <-s.memory.closed:
			return s.unavailable()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
