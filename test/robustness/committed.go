package robustness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"
)

// written is one committed write.
type written struct {
	key      string
	value    string // what is there since; of a deletion, what was there before
	deleted  bool
	revision int64
	seen     time.Duration // when somebody first knew of it
	by       *call         // who asked for it; nil: nobody is known
}

// committed is what all streams and answers together tell of the writes that
// happened, by revision.
type committed struct {
	writes  map[int64]*written
	order   []*written // by revision
	covered []span     // what some stream has told all of, by rising start
	broken  []string   // what does not fit together

	deletions map[string][]*written // by key
	ends      map[object]*written   // by key (as value) and revision of what was deleted
}

// span is the revisions after from, up to to.
type span struct{ from, to int64 }

// commitments merges what streams and answers tell.
func (h *history) commitments() *committed {
	m := &committed{writes: make(map[int64]*written)}
	ours := make(map[string]bool, len(h.Keys))
	for _, key := range h.Keys {
		ours[key] = true
	}
	for i := range h.Streams {
		s := &h.Streams[i]
		for _, c := range s.Changes {
			if c.Type != bookmark && ours[c.Key] {
				m.add(written{key: c.Key, value: c.Value, deleted: c.Type == deleted, revision: c.Revision, seen: c.At}, s.Server)
			}
		}
		m.covered = append(m.covered, span{s.From, s.upTo()})
	}
	for i := range h.Calls {
		c := &h.Calls[i]
		if c.Outcome == done && c.writes() && c.Revision != 0 && !c.deletes() {
			m.add(written{key: c.Key, value: c.Value, revision: c.Revision, seen: c.Returned}, c.Server)
		}
	}
	m.order = slices.SortedFunc(maps.Values(m.writes), func(a, b *written) int { return cmp.Compare(a.revision, b.revision) })
	m.covered = join(m.covered)
	m.attribute(h)
	return m
}

func (m *committed) add(w written, server string) {
	known := m.writes[w.revision]
	if known == nil {
		m.writes[w.revision] = &w
		return
	}
	if known.key != w.key || known.value != w.value || known.deleted != w.deleted {
		m.broken = append(m.broken, fmt.Sprintf("revision %d is %s at %s and elsewhere %s", w.revision, w.String(), server, known.String()))
	}
	known.seen = min(known.seen, w.seen)
}

func (w *written) String() string {
	if w.deleted {
		return fmt.Sprintf("deletion of %s (%s)", w.key, w.value)
	}
	return fmt.Sprintf("%s = %s", w.key, w.value)
}

func join(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var joined []span
	for _, s := range spans {
		if n := len(joined); n > 0 && s.from <= joined[n-1].to {
			joined[n-1].to = max(joined[n-1].to, s.to)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// knows tells whether every write after from, up to to, is known.
func (m *committed) knows(from, to int64) bool {
	return slices.ContainsFunc(m.covered, func(s span) bool { return s.from <= from && to <= s.to })
}

// between gives the known writes after from, up to to.
func (m *committed) between(from, to int64) []*written {
	after := func(revision int64) int {
		return sort.Search(len(m.order), func(i int) bool { return m.order[i].revision > revision })
	}
	return m.order[after(from):max(after(from), after(to))]
}

// at replays the writes: the objects there were at a revision.
func (m *committed) at(revision int64) map[string]item {
	items := make(map[string]item)
	for _, w := range m.order {
		switch {
		case w.revision > revision:
			return items
		case w.deleted:
			delete(items, w.key)
		default:
			items[w.key] = item{w.value, w.revision}
		}
	}
	return items
}

// attribute finds the call behind each write by its value. What a deletion
// carries is the value that it deleted: preconditions tell who meant it.
func (m *committed) attribute(h *history) {
	writers := make(map[string]*call)
	for i := range h.Calls {
		if c := &h.Calls[i]; c.writes() && !c.deletes() {
			writers[c.Value] = c
		}
	}
	m.deletions = make(map[string][]*written)
	m.ends = make(map[object]*written)
	before := make(map[string]int64) // key → revision of its object
	for _, w := range m.order {
		if !w.deleted {
			w.by = writers[w.value]
			before[w.key] = w.revision
			continue
		}
		m.deletions[w.key] = append(m.deletions[w.key], w)
		m.ends[object{value: w.key, revision: before[w.key]}] = w
		delete(before, w.key)
	}
}

// end is the deletion of what the call expected to find; nil: none is known.
func (m *committed) end(c *call) *written {
	return m.ends[object{value: c.Key, revision: c.Expect}]
}

// settled gives the calls with what the committed writes tell of those without
// an answer: they happened at a revision, before somebody saw it, or they did
// not. Where writes may be missing they stay open. It spares the checker from
// trying out every open call everywhere.
func (h *history) settled(m *committed) []call {
	whole := m.knows(h.Base, h.last())
	found := make(map[*call]*written)
	for _, w := range m.order {
		if w.by != nil {
			found[w.by] = w
		}
	}
	answered := make(map[string]int) // key → deletions with an answer
	for i := range h.Calls {
		if c := &h.Calls[i]; c.deletes() && c.Outcome == done {
			answered[c.Key]++
		}
	}
	calls := make([]call, 0, len(h.Calls))
	for i := range h.Calls {
		c, w := h.Calls[i], found[&h.Calls[i]]
		switch {
		case c.Kind == remove && c.Outcome == done:
			if w := m.end(&c); w != nil {
				c.Revision = w.revision
			}
		case c.Outcome != unknown || !c.writes():
		case w != nil:
			c.Outcome, c.Revision, c.Returned = done, w.revision, max(w.seen, c.Called)
		case whole && !c.deletes():
			continue
		case whole && answered[c.Key] >= len(m.deletions[c.Key]):
			continue
		case whole && c.Kind == remove && m.end(&c) == nil:
			continue
		default:
			c.Returned = never
		}
		calls = append(calls, c)
	}
	return calls
}

// last is the revision of the final lists.
func (h *history) last() int64 {
	last := h.Base
	for _, l := range h.Final {
		last = max(last, l.Revision)
	}
	return last
}
