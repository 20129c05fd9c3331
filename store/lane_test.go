package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// firstLetter is a lane by the value's first letter; x has none.
func firstLetter(key string, object any) string {
	value := string(object.([]byte))
	if value == "" || value[0] == 'x' {
		return ""
	}
	return "k/\x00" + value[:1]
}

// TestLanes compares watchers of lanes, begun at random revisions, with what a
// watcher of the whole resource sees of them.
func TestLanes(t *testing.T) {
	s := run(t, Config{Lane: firstLetter})
	random := rand.New(rand.NewPCG(1, 2))
	type begun struct {
		*Watcher
		lane  string
		after int64
	}
	var watchers []begun
	for i := range 400 {
		key := fmt.Sprintf("k/%d", random.IntN(6))
		if random.IntN(5) == 0 {
			mustUpdate(t, s, Op{Key: key, Expect: Any})
		} else {
			mustUpdate(t, s, put(key, string("abx"[random.IntN(3)])+fmt.Sprint(i)))
		}
		if random.IntN(20) == 0 {
			lane := []string{"k/\x00a", "k/\x00b", "k/3"}[random.IntN(3)]
			prefix := "k/"
			if lane == "k/3" {
				prefix = lane
			}
			after := random.Int64N(s.Revision() + 1)
			w, err := s.WatchLane(prefix, lane, after)
			if err != nil {
				t.Fatal(err)
			}
			watchers = append(watchers, begun{w, lane, after})
		}
		if random.IntN(40) == 0 && len(watchers) > 0 {
			watchers[0].Stop()
			watchers = watchers[1:]
		}
	}
	for _, w := range watchers {
		all, err := s.Watch("k/", w.after)
		if err != nil {
			t.Fatal(err)
		}
		events, _, _ := all.Next(t.Context())
		var want []string
		for _, e := range events {
			names := s.memory.lanesOf(e)
			if names[0] == w.lane || names[1] == w.lane || names[2] == w.lane {
				want = append(want, fmt.Sprint(e.Type, e.Entry.Key, e.Revision()))
			}
		}
		got, woken := []string{}, make(chan struct{})
		close(woken)
		found, revision, err := w.NextOr(t.Context(), woken)
		if err != nil || revision != s.Revision() {
			t.Errorf("revision %d, %v", revision, err)
		}
		for _, e := range found {
			got = append(got, fmt.Sprint(e.Type, e.Entry.Key, e.Revision()))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("lane %q after %d:\n%v\n%v", w.lane, w.after, got, want)
		}
		w.Stop()
		w.Stop() // once more is once
	}
	if left := len(s.memory.history.lanes); left != 0 {
		t.Errorf("%d lanes are left", left)
	}
}

// TestLaneWakes: a watcher of a lane sleeps through other events.
func TestLaneWakes(t *testing.T) {
	s := run(t, Config{Lane: firstLetter})
	w, err := s.WatchLane("k/", "k/\x00a", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	mustUpdate(t, s, put("k/1", "b"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if events, _, err := w.Next(ctx); err == nil {
		t.Errorf("saw %v", events)
	}
	if got := w.Progress(); got != s.Revision() {
		t.Errorf("progress %d, want %d", got, s.Revision())
	}
	seen := make(chan int)
	go func() {
		events, _, err := w.Next(t.Context())
		if err != nil {
			t.Error(err)
		}
		seen <- len(events)
	}()
	mustUpdate(t, s, put("k/2", "a"))
	if n := <-seen; n != 1 {
		t.Errorf("%d events", n)
	}
}
