package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"
)

// run runs a store on dir until the test ends, and checks it then.
func run(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, stop := launch(t, cfg)
	t.Cleanup(func() {
		if err := s.Check(context.Background()); err != nil {
			t.Errorf("check: %v", err)
		}
		if err := stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s
}

// launch runs a store until stop is called, which gives Run's error.
func launch(t testing.TB, cfg Config) (s *Store, stop func() error) {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var err error
	done := make(chan struct{})
	running.Go(func() { err = s.Run(ctx); close(done) })
	stop = sync.OnceValue(func() error { cancel(); running.Wait(); return err })
	select {
	case <-s.Ready():
	case <-done:
		t.Fatalf("run: %v", stop())
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	return s, stop
}

func put(key, value string) Op { return Op{Key: key, Value: []byte(value), Expect: Any} }

func mustUpdate(t testing.TB, s *Store, ops ...Op) []*Entry {
	t.Helper()
	entries, err := s.Update(t.Context(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestUpdateGetScan(t *testing.T) {
	s := run(t, Config{})
	w, err := s.Watch("pods/", 0)
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, put("pods/a/x", "1"), put("pods/b/y", "2"), put("nodes/n", "3"))
	e := mustUpdate(t, s, Op{Key: "pods/a/x", Value: []byte("4"), Expect: 1})[0]
	if e.CreateRevision != 1 || e.ModRevision != 4 {
		t.Errorf("entry is %+v", e)
	}
	_, err = s.Update(t.Context(), put("pods/c", "5"), Op{Key: "pods/a/x", Expect: 1})
	var conflict *ConflictError
	if !errors.As(err, &conflict) || conflict.Current.ModRevision != 4 {
		t.Errorf("err is %v", err)
	}
	if s.Revision() != 4 {
		t.Errorf("a failed update took a revision: %d", s.Revision())
	}
	mustUpdate(t, s, Op{Key: "pods/b/y", Expect: 2})
	var got []string
	for len(got) < 4 {
		events, _, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			got = append(got, fmt.Sprintf("%d %s@%d=%s", e.Type, e.Entry.Key, e.Revision(), e.Entry.Object))
		}
	}
	want := "[1 pods/a/x@1=1 1 pods/b/y@2=2 2 pods/a/x@4=4 3 pods/b/y@5=2]"
	if fmt.Sprint(got) != want {
		t.Errorf("events %v, want %s", got, want)
	}
	for at, want := range map[int64]string{0: "[pods/a/x=4]", 4: "[pods/a/x=4 pods/b/y=2]", 3: "[pods/a/x=1 pods/b/y=2]", 1: "[pods/a/x=1]"} {
		if got := list(t, s, "pods/", at); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	if rev, err := s.Sync(t.Context()); rev != 5 || err != nil {
		t.Errorf("sync: %d, %v", rev, err)
	}
}

func list(t testing.TB, s *Store, prefix string, at int64) string {
	t.Helper()
	var got []string
	if _, err := s.Scan(prefix, "", at, func(e *Entry) bool {
		got = append(got, fmt.Sprintf("%s=%s", e.Key, e.Object))
		return true
	}); err != nil {
		return err.Error()
	}
	n, err := s.Count(prefix, "", at)
	if err != nil || n != len(got) {
		t.Errorf("count of %q at %d is %d, %v; listed %d", prefix, at, n, err, len(got))
	}
	return fmt.Sprint(got)
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		s, stop := launch(t, Config{Dir: dir})
		if n, _ := s.Count("", "", 0); n != round || s.Revision() != int64(round) {
			t.Fatalf("round %d: %d keys at revision %d", round, n, s.Revision())
		}
		mustUpdate(t, s, put(fmt.Sprintf("k/%d", round), "v"))
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Update(t.Context(), put("k", "v")); !errors.Is(err, ErrClosed) {
			t.Errorf("update after close: %v", err)
		}
	}
}

// TestCompareAndSwap lets many callers count up one key, each expecting the
// revision it has read: no count may get lost or be doubled.
func TestCompareAndSwap(t *testing.T) {
	s := run(t, Config{})
	mustUpdate(t, s, put("k/counter", "0"))
	const callers, times = 8, 200
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			for done := 0; done < times; {
				e, _ := s.Get("k/counter")
				var n int
				fmt.Sscan(string(e.Object.([]byte)), &n)
				_, err := s.Update(t.Context(), Op{Key: "k/counter", Value: fmt.Append(nil, n+1), Expect: e.ModRevision})
				var conflict *ConflictError
				switch {
				case err == nil:
					done++
				case !errors.As(err, &conflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if got, want := list(t, s, "k/", 0), fmt.Sprintf("[k/counter=%d]", callers*times); got != want || s.Revision() != callers*times+1 {
		t.Errorf("%s at revision %d, want %s", got, s.Revision(), want)
	}
}
