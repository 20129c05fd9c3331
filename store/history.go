package store

import (
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// history holds the retained events, once in global order and once per
// resource, which is a key's first segment ("pods/"). The mvcc's lock guards it.
type history struct {
	all       []*Event // by strictly rising revision
	resources map[string]*eventLog
	lanes     map[string]*lane // those that are watched
	compacted int64            // events up to here are (or may be) forgotten
	past      int              // bytes of the states that the events replaced
}

// limit is what the history never exceeds, whatever its age.
type limit struct {
	events int
	bytes  int // of states of the past: what is still there costs the history nothing
}

// leastEvents are kept however large they are, so that a watcher can follow
// writes of objects of a megabyte.
const leastEvents = 100

// eventLog is the part of the history that watchers of one resource share.
// Slices of events are handed out: what they hold is never overwritten.
type eventLog struct {
	events []*Event
	// forgotten is the revision of the newest event that is not here any more. A
	// watcher that has seen it has missed nothing, however old what it saw last.
	forgotten int64

	waiting sync.Mutex
	changed chan struct{} // closed at the next event; nil while nobody waits; guarded by waiting
}

// resourceOf gives the first segment of a key or prefix with its slash, or all
// of it when there is no slash.
func resourceOf(key string) string {
	if i := strings.IndexByte(key, '/'); i >= 0 {
		return key[:i+1]
	}
	return key
}

func (h *history) log(resource string) *eventLog {
	l := h.resources[resource]
	if l == nil {
		if h.resources == nil {
			h.resources = make(map[string]*eventLog)
		}
		l = &eventLog{}
		h.resources[strings.Clone(resource)] = l
	}
	return l
}

// append adds an event and gives the log whose watchers must be woken.
func (h *history) append(e *Event) *eventLog {
	h.all = append(h.all, e)
	h.past += e.replaced()
	l := h.log(resourceOf(e.Entry.Key))
	l.events = append(l.events, e)
	return l
}

// compact forgets the events up to revision.
func (h *history) compact(revision int64) {
	if revision <= h.compacted {
		return
	}
	h.compacted = revision
	kept := forget(h.all, revision)
	for _, e := range h.all[:len(h.all)-len(kept)] {
		h.past -= e.replaced()
	}
	h.all = kept
	for _, l := range h.resources {
		l.forget(revision)
	}
	for _, l := range h.lanes {
		l.forget(revision)
	}
}

// reset forgets everything: the state was replaced as of revision.
func (h *history) reset(revision int64) {
	h.all, h.past, h.compacted = nil, 0, revision
	for _, l := range h.resources {
		l.events, l.forgotten = nil, revision
	}
	for _, l := range h.lanes {
		l.events, l.forgotten = nil, revision
	}
}

// keep holds the history to its limit. It then forgets a quarter more, because
// forgetting copies what stays.
func (h *history) keep(most limit) {
	if len(h.all) <= most.events && (h.past <= most.bytes || len(h.all) <= leastEvents) {
		return
	}
	n, past := max(0, len(h.all)-most.events*3/4), h.past
	for _, e := range h.all[:n] {
		past -= e.replaced()
	}
	for past > most.bytes*3/4 && len(h.all)-n > leastEvents*3/4 {
		past -= h.all[n].replaced()
		n++
	}
	h.compact(h.all[n-1].Revision())
}

// replaced is the size of the state that the event ended.
func (e *Event) replaced() int {
	if e.Prev == nil {
		return 0
	}
	return e.Prev.size
}

func (l *eventLog) forget(revision int64) {
	kept := forget(l.events, revision)
	if n := len(l.events) - len(kept); n > 0 {
		l.forgotten = l.events[n-1].Revision()
	}
	l.events = kept
}

// forget copies what stays, for the old array is still read by watchers, and
// must let go of what it drops.
func forget(events []*Event, revision int64) []*Event {
	kept := since(events, revision)
	if len(kept) == len(events) {
		return events
	}
	return slices.Clone(kept)
}

// since gives the events that happened after revision.
func since(events []*Event, revision int64) []*Event {
	i := sort.Search(len(events), func(i int) bool { return events[i].Revision() > revision })
	return events[i:len(events):len(events)]
}

// wait gives a channel that is closed at the next event. The caller holds the
// mvcc's lock, so no event can slip in between its look at the log and this.
func (l *eventLog) wait() <-chan struct{} {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

func (l *eventLog) wake() {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// retention decides how much history to forget. It sees the clock only through
// its caller.
type retention struct {
	age     time.Duration
	size    int
	samples []sample // by rising time
}

type sample struct {
	at       time.Time
	revision int64
}

// burst is how long events beyond the wanted size are kept nevertheless, so
// that watchers and paged lists survive a storm of writes.
func (r *retention) burst() time.Duration { return r.age / 20 }

// limit is the number of events that is never exceeded.
func (r *retention) limit() int { return 4 * r.size }

// due notes that revision has been reached by now and gives the revision up to
// which events may go; overflow is the newest revision that is not among the
// newest size events (0: there are fewer).
func (r *retention) due(now time.Time, revision, overflow int64) int64 {
	if n := len(r.samples); n == 0 || r.samples[n-1].revision != revision {
		r.samples = append(r.samples, sample{now, revision})
	}
	old := r.reached(now.Add(-r.age))
	for len(r.samples) > 1 && r.samples[1].revision <= old {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
	return max(old, min(overflow, r.reached(now.Add(-r.burst()))))
}

// reached is the newest revision known to have been reached at time at.
func (r *retention) reached(at time.Time) int64 {
	var revision int64
	for _, s := range r.samples {
		if s.at.After(at) {
			break
		}
		revision = s.revision
	}
	return revision
}
