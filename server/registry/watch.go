package registry

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"orch/store"
)

// WatchEvent is one event as this watch sees it: an object that came into the
// selection is ADDED, one that left it DELETED. Bookmarks carry only a version.
type WatchEvent struct {
	Type            string // ADDED MODIFIED DELETED BOOKMARK
	Object          Object // nil for BOOKMARK
	ResourceVersion int64
	InitialEnd      bool         // the bookmark that ends the initial events
	Event           *store.Event // for its Memo; nil for initial events and bookmarks
	Prior           bool         // Object is not the event's own but the last state before it left the selection
}

// Watch is a stream of events. Next is for one goroutine at a time.
type Watch struct {
	selector  *selector
	cursor    *store.Watcher
	oldest    func() int64 // start of the history kept
	initial   []WatchEvent
	seen      int64 // revision that the client knows to be complete
	bookmarks *bookmarkClock
	round     int64 // of the bookmark clock when this watch last looked
	ended     error // of a watch from a revision that is not there: all that Next gives
}

// Watch opens a stream. From "" and "0" it begins with the objects there are;
// from a revision with what happened since. From one that is not in the history
// any more, or not yet, it opens too, as upstream, and Next says so: clients look
// for that in the stream, and take another answer than 200 for a failure to try
// again.
func (r *Registry) Watch(ctx context.Context, res *Resource, sel Selection, opts *metav1.ListOptions) (*Watch, error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.ListOptions{}
	}
	if err := validateListOptions(opts, true); err != nil {
		return nil, err
	}
	s, err := e.compile(sel)
	if err != nil {
		return nil, err
	}
	from, err := parseVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if err := r.catchUp(ctx, opts.ResourceVersion, from); err != nil {
		if apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
			return &Watch{ended: err}, nil
		}
		return nil, err
	}
	w := &Watch{selector: s, seen: from, oldest: r.store.CompactRevision}
	if opts.AllowWatchBookmarks {
		w.bookmarks = &r.bookmarks
		w.round = w.bookmarks.round.Load()
	}
	initial := from == 0
	if opts.SendInitialEvents != nil {
		initial = *opts.SendInitialEvents
	}
	return w, r.start(ctx, w, initial, opts.SendInitialEvents != nil && *opts.SendInitialEvents)
}

// start places the cursor and collects the initial events.
func (r *Registry) start(ctx context.Context, w *Watch, initial, marked bool) (err error) {
	prefix := w.selector.prefix()
	switch {
	case initial:
		found, err := r.scanPage(ctx, w.selector, page{prefix: prefix})
		if err != nil {
			return err
		}
		w.begin(found, marked && w.bookmarks != nil)
	case w.seen == 0:
		w.seen = r.store.Revision()
	}
	w.cursor, err = r.store.WatchLane(prefix, w.selector.lane(), w.seen)
	if errors.Is(err, store.ErrCompacted) {
		w.ended = tooOld(w.seen, r.store.CompactRevision())
		return nil
	}
	return storeFailure(err)
}

// begin queues the objects found as ADDED.
func (w *Watch) begin(found *ListResult, marked bool) {
	w.seen = found.ResourceVersion
	w.initial = make([]WatchEvent, 0, len(found.Items)+1)
	for _, obj := range found.Items {
		w.initial = append(w.initial, WatchEvent{Type: string(watch.Added), Object: obj, ResourceVersion: w.seen})
	}
	if marked {
		w.initial = append(w.initial, WatchEvent{Type: string(watch.Bookmark), ResourceVersion: w.seen, InitialEnd: true})
	}
}

// tooOld is the 410 for a revision that is not in the history any more.
func tooOld(wanted, oldest int64) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", wanted, oldest))
}

// Stop ends the watch; a blocked Next returns.
func (w *Watch) Stop() {
	if w.cursor != nil {
		w.cursor.Stop()
	}
}

// Next blocks for at least one event. It gives a 410 StatusError when the watch
// fell behind the history, and the cause of ctx when that ends.
func (w *Watch) Next(ctx context.Context) ([]WatchEvent, error) {
	if w.ended != nil {
		return nil, w.ended
	}
	if len(w.initial) > 0 {
		first := w.initial
		w.initial = nil
		return first, nil
	}
	for {
		events, revision, err := w.wait(ctx)
		if err != nil {
			return nil, err
		}
		out, err := w.see(events)
		if err != nil {
			return nil, err
		}
		if bookmark, due := w.bookmark(revision, len(out) > 0); due {
			out = append(out, bookmark)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
}

// wait blocks for events of the resource, or until a bookmark is due.
func (w *Watch) wait(ctx context.Context) ([]*store.Event, int64, error) {
	var due <-chan struct{}
	if w.bookmarks != nil {
		due = w.bookmarks.after(w.round)
	}
	events, revision, err := w.cursor.NextOr(ctx, due)
	if errors.Is(err, store.ErrCompacted) {
		return nil, 0, tooOld(w.seen, w.oldest())
	}
	if err == nil && len(events) == 0 { // a bookmark is due
		revision = w.cursor.Progress()
	}
	return events, revision, err
}

// see translates store events into what this selection shows.
func (w *Watch) see(events []*store.Event) ([]WatchEvent, error) {
	var out []WatchEvent
	for _, event := range events {
		seen, show, err := w.selector.see(event)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		if !show {
			continue
		}
		if out == nil {
			out = make([]WatchEvent, 0, len(events))
		}
		out = append(out, seen)
		w.seen = seen.ResourceVersion
	}
	return out, nil
}

// bookmark is due when the clock has moved on and the client does not know
// revision yet.
func (w *Watch) bookmark(revision int64, busy bool) (WatchEvent, bool) {
	if w.bookmarks == nil {
		return WatchEvent{}, false
	}
	round := w.bookmarks.round.Load()
	if round == w.round || busy || revision <= 0 {
		return WatchEvent{}, false
	}
	w.round, w.seen = round, revision
	return WatchEvent{Type: string(watch.Bookmark), ResourceVersion: revision}, true
}

// see tells how event looks to the selection.
func (s *selector) see(event *store.Event) (WatchEvent, bool, error) {
	out := WatchEvent{ResourceVersion: event.Entry.ModRevision, Event: event}
	now, err := s.e.serveEvent(event, false)
	if err != nil {
		return out, false, err
	}
	out.Object = now
	var was, is bool
	if event.Type != store.Deleted {
		is = s.everything() || s.matchesEvent(event, now, false)
	}
	if event.Type != store.Created {
		if was = s.everything(); !was {
			before, err := s.e.serveEvent(event, true)
			if err != nil {
				return out, false, err
			}
			was = s.matchesEvent(event, before, true)
		}
	}
	switch {
	case is && was:
		out.Type = string(watch.Modified)
	case is:
		out.Type = string(watch.Added)
	case was && event.Type == store.Deleted:
		out.Type = string(watch.Deleted)
	case was:
		out.Type, out.Prior = string(watch.Deleted), true
		out.Object, err = s.e.departed(event)
	default:
		return out, false, nil
	}
	return out, true, err
}

type servedMemo struct {
	e     *entry
	prior bool
}

type departedMemo struct{ e *entry }

// converted is what a conversion gave, kept in an event's Memo.
type converted struct {
	obj Object
	err error
}

// serveEvent gives one side of an event in the entry's form, converted once.
func (e *entry) serveEvent(event *store.Event, prior bool) (Object, error) {
	side := event.Entry
	if prior {
		side = event.Prev
	}
	stored := side.Object.(Object)
	if e.Stored == nil {
		return stored, nil
	}
	out := event.Memo.Get(servedMemo{e, prior}, func() any {
		obj, err := e.serve(stored)
		return converted{obj, err}
	}).(converted)
	return out.obj, out.err
}

// departed is the last state that was in a selection, at the revision of the
// event that took it out.
func (e *entry) departed(event *store.Event) (Object, error) {
	out := event.Memo.Get(departedMemo{e}, func() any {
		before, err := e.serve(event.Prev.Object.(Object))
		if err != nil {
			return converted{nil, err}
		}
		gone := shallowCopy(before)
		gone.SetResourceVersion(fmt.Sprint(event.Entry.ModRevision))
		return converted{gone, nil}
	}).(converted)
	return out.obj, out.err
}
