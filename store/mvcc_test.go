package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// model is the naive store: all states of all time.
type model struct {
	states []map[string]string // by revision
	mods   map[string]int64
	events []string // by revision, from 1
}

func newModel() *model {
	return &model{states: []map[string]string{{}}, mods: map[string]int64{}}
}

func (m *model) revision() int64 { return int64(len(m.states) - 1) }

// update does ops like Store.Update and tells whether they held.
func (m *model) update(ops []Op) bool {
	before := *m
	before.mods = cloneMap(m.mods)
	touched := map[string]bool{}
	for _, op := range ops {
		mod, exists := m.mods[op.Key]
		held := op.Expect == Any || op.Expect == Absent && !exists || exists && op.Expect == mod && !touched[op.Key]
		if !held {
			*m = before
			return false
		}
		touched[op.Key] = true
		if op.Value == nil && !exists {
			continue
		}
		state := cloneMap(m.states[m.revision()])
		kind := Created
		switch {
		case op.Value == nil:
			kind = Deleted
			m.events = append(m.events, fmt.Sprintf("%d %s=%s", kind, op.Key, state[op.Key]))
			delete(state, op.Key)
			delete(m.mods, op.Key)
		default:
			if exists {
				kind = Modified
			}
			state[op.Key] = string(op.Value)
			m.mods[op.Key] = m.revision() + 1
			m.events = append(m.events, fmt.Sprintf("%d %s=%s", kind, op.Key, state[op.Key]))
		}
		m.states = append(m.states, state)
	}
	return true
}

func cloneMap[V any](from map[string]V) map[string]V {
	to := make(map[string]V, len(from))
	for k, v := range from {
		to[k] = v
	}
	return to
}

func (m *model) list(prefix, after string, at int64) string {
	var got []string
	for k, v := range m.states[at] {
		if strings.HasPrefix(k, prefix) && k > after {
			got = append(got, k+"="+v)
		}
	}
	slices.Sort(got)
	return fmt.Sprint(got)
}

func randomOps(r *rand.Rand, m *model) []Op {
	ops := make([]Op, 1+r.IntN(3))
	for i := range ops {
		op := &ops[i]
		op.Key = fmt.Sprintf("%s/%c/%c", []string{"pods", "nodes", "podsx"}[r.IntN(3)], 'a'+r.IntN(3), 'a'+r.IntN(4))
		if r.IntN(4) > 0 {
			op.Value = fmt.Appendf(nil, "v%d", r.IntN(1000))
		}
		switch r.IntN(6) {
		case 0:
			op.Expect = Absent
		case 1:
			op.Expect = m.mods[op.Key]
		case 2:
			op.Expect = 1 + r.Int64N(m.revision()+1)
		default:
			op.Expect = Any
		}
	}
	return ops
}

// TestModel does random things to a store and to the model, restarts the store
// now and then, and compares all that can be read.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testModel(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func testModel(t *testing.T, r *rand.Rand) {
	cfg := Config{Dir: t.TempDir(), tuning: tuning{flushDelay: time.Millisecond, flushBytes: 2000, logBytes: 100_000}}
	m := newModel()
	s, stop := launch(t, cfg)
	defer func() { stop() }()
	watches := newWatchers(t)
	for step := range 600 {
		ops := randomOps(r, m)
		_, err := s.Update(t.Context(), ops...)
		if held := m.update(ops); held != (err == nil) {
			t.Fatalf("step %d: update %v: %v, model says %v", step, ops, err, held)
		}
		compare(t, s, m, r)
		switch r.IntN(60) {
		case 0:
			s.Compact(s.CompactRevision() + r.Int64N(20))
		case 1, 2, 3:
			watches.add(s, m, r)
		case 4:
			watches.wait(s, m)
			if err := errors.Join(s.Check(t.Context()), stop()); err != nil {
				t.Fatal(err)
			}
			s, stop = launch(t, cfg)
		}
	}
	watches.wait(s, m)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// compare reads one prefix at one revision, that of now included.
func compare(t *testing.T, s *Store, m *model, r *rand.Rand) {
	t.Helper()
	if s.Revision() != m.revision() {
		t.Fatalf("revision is %d, model says %d", s.Revision(), m.revision())
	}
	at := r.Int64N(m.revision() + 2)
	prefix := []string{"", "pods/", "pods/a/", "nodes/", "po", "none/"}[r.IntN(6)]
	after := []string{"", "pods/a/b", "nodes/c"}[r.IntN(3)]
	var got []string
	read, err := s.Scan(prefix, after, at, func(e *Entry) bool {
		got = append(got, fmt.Sprintf("%s=%s", e.Key, e.Object))
		return true
	})
	switch {
	case at > m.revision():
		if !errors.Is(err, ErrFutureRevision) {
			t.Fatalf("scan at %d of %d: %v", at, m.revision(), err)
		}
		return
	case at != 0 && at < s.CompactRevision():
		if !errors.Is(err, ErrCompacted) {
			t.Fatalf("scan at %d, compacted at %d: %v", at, s.CompactRevision(), err)
		}
		return
	case at == 0:
		at = m.revision()
	}
	if want := m.list(prefix, after, at); err != nil || fmt.Sprint(got) != want || read != at {
		t.Fatalf("scan of %q after %q at %d: %v %v at %d, want %s", prefix, after, at, got, err, read, want)
	}
	if n, err := s.Count(prefix, after, at); err != nil || n != len(got) {
		t.Fatalf("count of %q after %q at %d: %d, %v, want %d", prefix, after, at, n, err, len(got))
	}
}

// watchers follow the store from many revisions at once.
type watchers struct {
	t       *testing.T
	running sync.WaitGroup
	cancel  []context.CancelFunc
	check   []func()
}

func newWatchers(t *testing.T) *watchers { return &watchers{t: t} }

func (ws *watchers) add(s *Store, m *model, r *rand.Rand) {
	compacted := s.CompactRevision()
	after := compacted + r.Int64N(m.revision()-compacted+1)
	prefix := []string{"pods/", "pods/a/", "nodes/"}[r.IntN(3)]
	w, err := s.Watch(prefix, after)
	if err != nil {
		ws.t.Fatal(err)
	}
	if _, err := s.Watch(prefix, compacted-1); compacted > 0 && !errors.Is(err, ErrCompacted) {
		ws.t.Fatalf("watch from %d, compacted at %d: %v", compacted-1, compacted, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ws.cancel = append(ws.cancel, cancel)
	var got []string
	var last error
	ws.running.Go(func() {
		for last == nil {
			var events []*Event
			if events, _, last = w.Next(ctx); last == nil {
				for _, e := range events {
					got = append(got, fmt.Sprintf("@%d %d %s=%s", e.Revision(), e.Type, e.Entry.Key, e.Entry.Object))
				}
			}
		}
	})
	ws.check = append(ws.check, func() {
		var want []string
		for i, e := range m.events[after:] {
			if strings.HasPrefix(e[2:], prefix) {
				want = append(want, fmt.Sprintf("@%d %s", after+int64(i)+1, e))
			}
		}
		// What it did not come to see any more must be missing at the end.
		if errors.Is(last, context.Canceled) && w.Progress() != s.Revision() {
			want = want[:min(len(got), len(want))]
		}
		if errors.Is(last, ErrCompacted) {
			want = want[:min(len(got), len(want))]
		}
		if !slices.Equal(got, want) {
			ws.t.Errorf("watch of %q after %d ended with %v:\n got %v\nwant %v", prefix, after, last, got, want)
		}
	})
}

// wait ends the watches and compares what they saw with the model.
func (ws *watchers) wait(*Store, *model) {
	for _, cancel := range ws.cancel {
		cancel()
	}
	ws.running.Wait()
	for _, check := range ws.check {
		check()
	}
	ws.cancel, ws.check = nil, nil
}
