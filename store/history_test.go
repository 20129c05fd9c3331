package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestRetention(t *testing.T) {
	r := retention{age: 100 * time.Second, size: 10}
	start := time.Unix(1000, 0)
	for _, step := range []struct {
		second             int
		revision, overflow int64
		want               int64
	}{
		{0, 5, 0, 0},
		{3, 20, 10, 0},   // too many, but all of them are fresh
		{5, 21, 11, 5},   // those of the beginning are five seconds old
		{9, 21, 11, 11},  // the burst is over
		{50, 30, 11, 11}, // nothing is beyond the size any more
		{100, 30, 0, 5},
		{103, 30, 0, 20},
		{150, 30, 0, 30},
		{500, 30, 0, 30},
	} {
		if got := r.due(start.Add(time.Duration(step.second)*time.Second), step.revision, step.overflow); got != step.want {
			t.Errorf("after %d s: %d, want %d", step.second, got, step.want)
		}
	}
	if len(r.samples) != 1 {
		t.Errorf("%d samples are kept", len(r.samples))
	}
}

// TestHistoryForgets lets events grow old in a live store.
func TestHistoryForgets(t *testing.T) {
	s := run(t, Config{HistoryAge: 100 * time.Millisecond})
	w, err := s.Watch("k/", 0)
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, put("k/1", "v"), put("k/2", "v"))
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.CompactRevision() != 2 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("compacted only to %d", s.CompactRevision())
		}
	}
	if _, _, err := w.Next(t.Context()); !errors.Is(err, ErrCompacted) {
		t.Errorf("watch: %v", err)
	}
	if _, err := s.Scan("k/", "", 1, nil); !errors.Is(err, ErrCompacted) {
		t.Errorf("scan: %v", err)
	}
	if got := list(t, s, "k/", 2); got != "[k/1=v k/2=v]" {
		t.Errorf("scan at 2: %s", got)
	}
}

// TestHistoryLimit: a flood of writes cannot fill memory with its history.
func TestHistoryLimit(t *testing.T) {
	s := run(t, Config{HistorySize: 10})
	for i := range 200 {
		mustUpdate(t, s, put("k/1", fmt.Sprint(i)))
	}
	if kept := s.Revision() - s.CompactRevision(); kept < 10 || kept > 40 {
		t.Errorf("%d events are kept", kept)
	}
}

// TestHistoryLimitOfBytes: neither can writes of large values; but what is new
// costs nothing, and a few events are always there.
func TestHistoryLimitOfBytes(t *testing.T) {
	s := run(t, Config{tuning: tuning{historyBytes: 1000}})
	for i := range 500 {
		mustUpdate(t, s, put(fmt.Sprint("new/", i), strings.Repeat("x", 100)))
	}
	if s.CompactRevision() != 0 {
		t.Errorf("creations were forgotten, up to %d", s.CompactRevision())
	}
	for i := range 500 {
		mustUpdate(t, s, put("k/1", strings.Repeat("x", 100+i)))
	}
	if kept := s.Revision() - s.CompactRevision(); kept < leastEvents*3/4 || kept > leastEvents {
		t.Errorf("%d events are kept", kept)
	}
	for i := range 500 {
		mustUpdate(t, s, put("k/2", fmt.Sprint(i)))
	}
	if kept := s.Revision() - s.CompactRevision(); kept < leastEvents || kept > 500 {
		t.Errorf("%d events of small values are kept", kept)
	}
}

// TestIdleWatch: what others write, and what of it is forgotten, does not matter
// to a watcher that has missed nothing.
func TestIdleWatch(t *testing.T) {
	s := run(t, Config{HistorySize: 10})
	mustUpdate(t, s, put("k/1", "v"))
	w, err := s.Watch("k/", s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	late, err := s.Watch("k/", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		mustUpdate(t, s, put("other/1", fmt.Sprint(i)))
	}
	if s.CompactRevision() < 10 {
		t.Fatalf("compacted only to %d", s.CompactRevision())
	}
	if got := w.Progress(); got != s.Revision() {
		t.Errorf("progress %d, want %d", got, s.Revision())
	}
	mustUpdate(t, s, put("k/2", "v"))
	if events, _, err := w.Next(t.Context()); err != nil || len(events) != 1 || events[0].Entry.Key != "k/2" {
		t.Errorf("got %v, %v", events, err)
	}
	if _, _, err := late.Next(t.Context()); !errors.Is(err, ErrCompacted) {
		t.Errorf("the watcher that missed one: %v", err)
	}
}

func TestWatchEnds(t *testing.T) {
	s, stop := launch(t, Config{})
	if _, err := s.Watch("k/", 1); !errors.Is(err, ErrFutureRevision) {
		t.Errorf("watch from the future: %v", err)
	}
	ended := make(chan error)
	watch := func(ctx context.Context) *Watcher {
		w, err := s.Watch("k/", 0)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _, err := w.Next(ctx)
			ended <- err
		}()
		return w
	}
	watch(t.Context()).Stop()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("stopped watch: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watch(ctx)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled watch: %v", err)
	}
	watch(t.Context())
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("watch of a stopped store: %v", err)
	}
}

func TestWatchProgress(t *testing.T) {
	s := run(t, Config{})
	w, _ := s.Watch("k/a/", 0)
	mustUpdate(t, s, put("other/1", "v"), put("k/b/1", "v"))
	if got := w.Progress(); got != 2 {
		t.Errorf("nothing pending: progress is %d", got)
	}
	mustUpdate(t, s, put("k/a/1", "v"), put("other/1", "v"))
	if got := w.Progress(); got != 2 {
		t.Errorf("3 is pending: progress is %d", got)
	}
	if _, seen, err := w.Next(t.Context()); seen != 4 || err != nil {
		t.Errorf("next has seen %d, %v", seen, err)
	}
	if got := w.Progress(); got != 4 {
		t.Errorf("all seen: progress is %d", got)
	}
}
