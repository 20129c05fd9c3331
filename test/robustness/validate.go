package robustness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Types of events.
const (
	added    = "ADDED"
	modified = "MODIFIED"
	deleted  = "DELETED"
	bookmark = "BOOKMARK"
)

// patience is how long the checker may think about one round.
const patience = 3 * time.Minute

// check gives what contradicts the guarantees, in words; nothing: all were kept.
func (h *history) check() []string {
	m := h.commitments()
	broken := slices.Concat(m.broken, h.unasked(m), h.answered(m), h.inOrder(m))
	for i := range h.Streams {
		broken = append(broken, h.Streams[i].check(h, m)...)
	}
	for _, l := range append(h.Listings, h.Final...) {
		broken = append(broken, l.check(h, m)...)
	}
	broken = append(broken, h.agree()...)
	broken = append(broken, h.staleReads(m)...)
	switch result, _, _ := h.linearizable(h.settled(m), patience); result {
	case "Illegal":
		broken = append(broken, "the calls are not linearizable")
	case "Unknown":
		broken = append(broken, fmt.Sprintf("it could not be decided within %s whether the calls are linearizable", patience))
	}
	return broken
}

// unasked finds writes that nobody asked for, that were refused, or that were
// seen before they were asked for.
func (h *history) unasked(m *committed) (broken []string) {
	asked := make(map[string]time.Duration) // key → first delete
	for i := range h.Calls {
		if c := &h.Calls[i]; c.deletes() {
			if first, ok := asked[c.Key]; !ok || c.Called < first {
				asked[c.Key] = c.Called
			}
		}
	}
	for _, w := range m.order {
		first, ok := asked[w.key]
		switch c := w.by; {
		case w.deleted && (!ok || w.seen < first):
			broken = append(broken, fmt.Sprintf("%s at %d: nobody had asked for a deletion", w, w.revision))
		case w.deleted:
		case c == nil || c.Key != w.key:
			broken = append(broken, fmt.Sprintf("%s at %d: nobody has asked for it", w, w.revision))
		case c.Outcome != done && c.Outcome != unknown:
			broken = append(broken, fmt.Sprintf("%s at %d happened, and its client was told: %s", w, w.revision, c.Outcome))
		case c.Outcome == done && c.Revision != w.revision:
			broken = append(broken, fmt.Sprintf("%s happened at %d, and its client was told: at %d", w, w.revision, c.Revision))
		case w.seen < c.Called:
			broken = append(broken, fmt.Sprintf("%s at %d was seen %s before it was asked for", w, w.revision, c.Called-w.seen))
		}
	}
	return broken
}

// answered finds writes that were acknowledged, and of which the streams that
// cover everything know nothing.
func (h *history) answered(m *committed) (broken []string) {
	if !m.knows(h.Base, h.last()) {
		return nil
	}
	acknowledged := make(map[string]int)
	for i := range h.Calls {
		c := &h.Calls[i]
		if !c.deletes() || c.Outcome != done {
			continue
		}
		acknowledged[c.Key]++
		if c.Kind == remove && m.end(c) == nil {
			broken = append(broken, fmt.Sprintf("%s was acknowledged, and no stream tells of it", c.describe()))
		}
	}
	for key, n := range acknowledged {
		if told := len(m.deletions[key]); told < n {
			broken = append(broken, fmt.Sprintf("%d deletions of %s were acknowledged, and streams tell of %d", n, key, told))
		}
	}
	return broken
}

// inOrder checks that revisions follow time: of two writes, the one that was
// acknowledged before the other was asked for has the lower revision, whatever
// their keys.
func (h *history) inOrder(m *committed) (broken []string) {
	var calls []call
	for _, c := range h.settled(m) {
		if c.writes() && c.Outcome == done && c.Revision != 0 {
			calls = append(calls, c)
		}
	}
	byReturn := slices.Clone(calls)
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(a.Called, b.Called) })
	slices.SortFunc(byReturn, func(a, b call) int { return cmp.Compare(a.Returned, b.Returned) })
	var newest call // acknowledged before the call in question
	for _, c := range calls {
		for len(byReturn) > 0 && byReturn[0].Returned < c.Called {
			if byReturn[0].Revision > newest.Revision {
				newest = byReturn[0]
			}
			byReturn = byReturn[1:]
		}
		if c.Revision <= newest.Revision {
			broken = append(broken, fmt.Sprintf("%s came after %s had been acknowledged", c.describe(), newest.describe()))
		}
	}
	return broken
}

// check holds one stream against the writes that happened: ordered, unique,
// complete, nothing else, of the right type, and nothing after its bookmark.
func (s *stream) check(h *history, m *committed) (broken []string) {
	wrong := func(format string, args ...any) {
		broken = append(broken, fmt.Sprintf("stream at %s from %d: ", s.Server, s.From)+fmt.Sprintf(format, args...))
	}
	last := s.From
	marked := false
	told := make(map[int64]bool)
	for _, c := range s.Changes {
		switch {
		case c.Type == bookmark && c.Revision >= last:
		case c.Type == bookmark:
			wrong("bookmark at %d after revision %d", c.Revision, last)
		case c.Revision == last && !marked && c.Revision != s.From:
			wrong("%d is told twice", c.Revision)
		case c.Revision <= last && marked:
			wrong("%s %s at %d after a bookmark at %d", c.Type, c.Key, c.Revision, last)
		case c.Revision <= last:
			wrong("%s %s at %d after %d", c.Type, c.Key, c.Revision, last)
		}
		last, marked = max(last, c.Revision), c.Type == bookmark
		told[c.Revision] = told[c.Revision] || c.Type != bookmark
	}
	for _, w := range m.between(s.From, s.upTo()) {
		if !told[w.revision] {
			wrong("%s at %d is left out, up to %d", w, w.revision, s.upTo())
		}
	}
	return append(broken, s.checkTypes(h, m)...)
}

// checkTypes: ADDED is what was not there before.
func (s *stream) checkTypes(h *history, m *committed) (broken []string) {
	if !m.knows(h.Base, s.upTo()) {
		return nil
	}
	there := m.at(s.From)
	ours := keySet(h.Keys)
	for _, c := range s.Changes {
		if c.Type == bookmark || !ours[c.Key] {
			continue
		}
		if _, before := there[c.Key]; before == (c.Type == added) {
			broken = append(broken, fmt.Sprintf("stream at %s: %s at %d is told as %s", s.Server, c.Key, c.Revision, c.Type))
		}
		there[c.Key] = item{c.Value, c.Revision}
		if c.Type == deleted {
			delete(there, c.Key)
		}
	}
	return broken
}

func keySet(keys []string) map[string]bool {
	set := make(map[string]bool, len(keys))
	for _, key := range keys {
		set[key] = true
	}
	return set
}

// check holds a list against the writes up to its revision, and its revision
// against time: not older than what had been acknowledged, not newer than what
// had been asked for.
func (l *listing) check(h *history, m *committed) (broken []string) {
	wrong := func(format string, args ...any) {
		broken = append(broken, fmt.Sprintf("list of %d pages at %s: ", l.Pages, l.Server)+fmt.Sprintf(format, args...))
	}
	if l.Torn != 0 {
		wrong("it begins at %d and goes on at %d", l.Revision, l.Torn)
	}
	if m.knows(h.Base, l.Revision) && !maps.Equal(l.Items, m.at(l.Revision)) {
		wrong("at %d it shows %v instead of %v", l.Revision, l.Items, m.at(l.Revision))
	}
	for _, w := range m.order {
		c := w.by
		switch {
		case c == nil:
		case w.revision > l.Revision && c.Outcome == done && c.Returned < l.Called:
			wrong("at %d, though %s had been acknowledged at %d", l.Revision, w, w.revision)
		case w.revision <= l.Revision && c.Called > l.Returned:
			wrong("at %d, though %s at %d had not been asked for", l.Revision, w, w.revision)
		}
	}
	return broken
}

// agree: when all is healed, each server lists what the others list.
func (h *history) agree() (broken []string) {
	for _, l := range h.Final {
		if first := h.Final[0]; !maps.Equal(l.Items, first.Items) {
			broken = append(broken, fmt.Sprintf("at last %s has %v, and %s has %v", first.Server, first.Items, l.Server, l.Items))
		}
	}
	return broken
}

// staleReads: a read that takes any version still shows one that was.
func (h *history) staleReads(m *committed) (broken []string) {
	for i := range h.Calls {
		c := &h.Calls[i]
		if !c.Stale || c.Outcome != done {
			continue
		}
		w := m.writes[c.Revision]
		switch {
		case w == nil && m.knows(h.Base, c.Revision):
			broken = append(broken, fmt.Sprintf("%s, which never was", c.describe()))
		case w != nil && (w.deleted || w.key != c.Key || w.value != c.Found):
			broken = append(broken, fmt.Sprintf("%s, where there is %s", c.describe(), w))
		}
	}
	return broken
}
