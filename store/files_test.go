package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// filled makes a folder with a store of n keys, half of them flushed.
func filled(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	s, stop := launch(t, Config{Dir: dir})
	for i := range n {
		mustUpdate(t, s, put(fmt.Sprintf("k/%03d", i), strings.Repeat("v", 500)))
		if i == n/2 {
			if err := s.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	crash := t.TempDir()
	copyFiles(t, dir, crash)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return crash
}

// copyFiles copies what a crash would leave behind.
func copyFiles(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, path string, fn func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, fn(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReplay(t *testing.T) {
	s := run(t, Config{Dir: filled(t, 100)})
	if n, _ := s.Count("k/", "", 0); n != 100 || s.Revision() != 100 {
		t.Errorf("%d keys at revision %d", n, s.Revision())
	}
	// What was replayed can be watched.
	if s.CompactRevision() != 51 {
		t.Errorf("history begins at %d", s.CompactRevision())
	}
	w, err := s.Watch("k/", 60)
	if err != nil {
		t.Fatal(err)
	}
	if events, _, err := w.Next(t.Context()); err != nil || len(events) != 40 {
		t.Errorf("%d events, %v", len(events), err)
	}
}

// TestDamage: every damage is told, with the file's name, and nothing is
// changed by the attempt to start.
func TestDamage(t *testing.T) {
	zero := func(b []byte, from, to int) []byte { clear(b[from:to]); return b }
	for name, damage := range map[string]struct {
		file string
		fn   func(b []byte) []byte
	}{
		"both heads of the state lost":  {"state.db", func(b []byte) []byte { return zero(b, 0, 8192) }},
		"both heads of the log lost":    {"raft.db", func(b []byte) []byte { return zero(b, 0, 8192) }},
		"state is not a database":       {"state.db", func([]byte) []byte { return []byte("hello, world") }},
		"state cut off":                 {"state.db", func(b []byte) []byte { return b[:20<<10] }},
		"log cut off":                   {"raft.db", func(b []byte) []byte { return b[:20<<10] }},
		"pages of the state lost":       {"state.db", func(b []byte) []byte { return zero(b, 16<<10, 36<<10) }},
		"pages of the log lost":         {"raft.db", func(b []byte) []byte { return zero(b, 16<<10, 60<<10) }},
		"a bit of a value in the state": {"state.db", func(b []byte) []byte { return flip(b, "k/007") }},
		"a bit of a value in the log":   {"raft.db", func(b []byte) []byte { return flip(b, "k/077") }},
		"log lost":                      {"raft.db", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 100)
			path := filepath.Join(dir, damage.file)
			if damage.fn == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				change(t, path, damage.fn)
			}
			before, _ := os.ReadFile(path)
			err := New(Config{Dir: dir}).Run(t.Context())
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), path) {
				t.Fatalf("run: %v", err)
			}
			t.Log(err)
			if after, _ := os.ReadFile(path); damage.fn != nil && string(after) != string(before) {
				t.Error("the file was changed")
			}
		})
	}
}

// flip changes one bit of the last value after key, wherever it is stored.
func flip(b []byte, key string) []byte {
	for i := 0; ; {
		at := strings.Index(string(b[i:]), key)
		if at < 0 {
			return b
		}
		i += at + len(key)
		if v := strings.Index(string(b[i:min(len(b), i+20)]), "vvvv"); v >= 0 {
			b[i+v] ^= 1
		}
	}
}

// TestStateLostAfterTruncation: the log alone is not the whole state any more.
func TestStateLostAfterTruncation(t *testing.T) {
	for _, more := range []int{0, 3} {
		dir := t.TempDir()
		s, stop := launch(t, Config{Dir: dir})
		mustUpdate(t, s, put("k/1", "v"), put("k/2", "v"))
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		for range more {
			mustUpdate(t, s, put("k/3", "v"))
		}
		if err := errors.Join(s.Check(t.Context()), stop(), os.Remove(filepath.Join(dir, "state.db"))); err != nil {
			t.Fatal(err)
		}
		err := New(Config{Dir: dir}).Run(t.Context())
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("run: %v", err)
		}
	}
}

// TestTornWrite loses the last page of the last log write, which is what a
// power cut does to a write that was not acknowledged yet.
func TestTornWrite(t *testing.T) {
	dir := filled(t, 100)
	path := filepath.Join(dir, "raft.db")
	change(t, path, func(b []byte) []byte {
		// Of the two meta pages the newer one was written last; its transaction
		// number is at byte 64.
		newest := 0
		if b[4096+64] > b[64] {
			newest = 4096
		}
		clear(b[newest+40 : newest+72])
		return b
	})
	s := run(t, Config{Dir: dir})
	if n, _ := s.Count("k/", "", 0); n != 99 {
		t.Errorf("%d keys", n)
	}
	mustUpdate(t, s, put("k/new", "v"))
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	run(t, Config{Dir: dir})
	began := time.Now()
	err := New(Config{Dir: dir}).Run(t.Context())
	if !errors.Is(err, berrors.ErrTimeout) || !strings.Contains(err.Error(), "in use by another orch process") {
		t.Errorf("run: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v to find out", took)
	}
}

// TestFoundingCutShort: a crash in the middle of the very first start.
func TestFoundingCutShort(t *testing.T) {
	dir := t.TempDir()
	l, err := openLogStore(filepath.Join(dir, "raft.db"), nil, nil, &notice{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.SetUint64(keyTerm, 1), l.close()); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, run(t, Config{Dir: dir}), put("k", "v"))
}

// TestFilesStayBounded overwrites a few keys with a hundred times what the
// files may hold.
func TestFilesStayBounded(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, tuning: tuning{flushDelay: time.Hour, flushBytes: 64 << 10, logBytes: 256 << 10}}
	s, stop := launch(t, cfg)
	value := strings.Repeat("x", 64<<10)
	for i := range 400 {
		mustUpdate(t, s, put(fmt.Sprintf("k/%d", i%8), value))
	}
	if err := errors.Join(s.Check(t.Context()), stop()); err != nil {
		t.Fatal(err)
	}
	for name, limit := range map[string]int64{"raft.db": 4 << 20, "state.db": 4 << 20} {
		if size := allocated(t, filepath.Join(dir, name)); size > limit {
			t.Errorf("%s has %d bytes after %d were written", name, size, 400*len(value))
		}
	}
	s = run(t, cfg)
	if n, _ := s.Count("k/", "", 0); n != 8 {
		t.Errorf("%d keys", n)
	}
}

func allocated(t *testing.T, path string) int64 {
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// TestDiskFull fills a real, tiny disk. The store says so, answers reads, and
// takes writes again by itself; a start on the full disk works, too.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	cfg := Config{Dir: dir, tuning: tuning{flushDelay: time.Millisecond}}
	s, stop := launch(t, cfg)
	written := fillStore(t, s)
	if err := s.ReadOnly(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("the store with a full disk: %v", err)
	}
	if _, err := s.Update(t.Context(), put("k", "v")); !errors.Is(err, ErrReadOnly) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a write: %v", err)
	}
	if _, err := s.Update(LastWords(t.Context()), put("k/last", "words")); err != nil {
		t.Errorf("last words: %v", err)
	}
	written++
	if _, err := s.Sync(t.Context()); err != nil {
		t.Errorf("a read: %v", err)
	}
	if n, _ := s.Count("k/", "", 0); n < written {
		t.Errorf("%d keys, %d were acknowledged", n, written)
	}
	if err := stop(); err != nil {
		t.Errorf("stop on the full disk: %v", err)
	}

	os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4<<20), 0o600)
	s, stop = launch(t, cfg)
	if n, _ := s.Count("k/", "", 0); n < written {
		t.Errorf("after a start on the full disk %d keys, %d were acknowledged", n, written)
	}
	// The leader's own work waits for space instead of failing.
	waited := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fillStore(t, s)
	go func() {
		waited <- s.Lead(ctx, func(ctx context.Context) error {
			_, err := s.Update(ctx, put("k/waited", "v"))
			cancel()
			return err
		})
	}()
	changed := s.ReadOnlyChanged()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	<-changed
	if err := <-waited; err != nil {
		t.Errorf("what waited for space: %v", err)
	}
	if err := s.ReadOnly(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	mustUpdate(t, s, put("k/after", "v"))
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// fillStore writes until the store is read-only, and gives the number of writes
// that were acknowledged.
func fillStore(t *testing.T, s *Store) (written int) {
	t.Helper()
	for value := strings.Repeat("x", 16<<10); ; written++ {
		_, err := s.Update(t.Context(), put(fmt.Sprintf("k/%04d", written), value))
		if errors.Is(err, ErrReadOnly) {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestIdle: a store that is left alone writes nothing.
func TestIdle(t *testing.T) {
	dir := t.TempDir()
	s := run(t, Config{Dir: dir, tuning: tuning{flushDelay: time.Millisecond}})
	mustUpdate(t, s, put("k", "v"))
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	transactions := func() (n int64) {
		for _, db := range []*bolt.DB{s.log.db, s.state.db} {
			stats := db.Stats()
			n += stats.TxStats.GetWrite()
		}
		return n
	}
	before := transactions()
	for range 100 {
		if _, err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Twice the leader's lease is enough for each of raft's timers.
	<-time.After(2 * time.Second)
	if after := transactions(); after != before {
		t.Errorf("%d page writes while idle", after-before)
	}
}
