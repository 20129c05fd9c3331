package robustness

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"orch/test/cluster"
)

// watcher follows the objects through one server: it goes on where its last
// stream ended, and lists anew only when it is told to.
type watcher struct {
	*access
	r *recorder

	mu      sync.Mutex
	reached int64         // revision up to which it has been told everything; guarded by mu
	moved   chan struct{} // closed when reached moves; guarded by mu
}

func newWatcher(server *cluster.Node, r *recorder, from int64) (*watcher, error) {
	a, err := newAccess(server)
	return &watcher{access: a, r: r, reached: from, moved: make(chan struct{})}, err
}

// retryWatch is the pause before a stream is asked for again.
const retryWatch = 30 * time.Millisecond

// run follows until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	defer w.close()
	for ctx.Err() == nil {
		s := stream{Server: w.server.Name, From: w.at()}
		w.follow(ctx, w.r, &s, 20, w.reach)
		w.r.stream(s)
		if s.Expired {
			w.again(ctx)
		}
		select {
		case <-time.After(retryWatch):
		case <-ctx.Done():
		}
	}
	return nil
}

// again lists, since what happened is not kept any more.
func (w *watcher) again(ctx context.Context) {
	if l, err := w.listing(ctx, w.r, 1); err == nil {
		w.r.listing(l)
		w.reach(l.Revision)
	}
}

func (w *watcher) at() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reached
}

func (w *watcher) reach(revision int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if revision > w.reached {
		w.reached = revision
		close(w.moved)
		w.moved = make(chan struct{})
	}
}

// await waits until the watcher has been told everything up to the revision.
func (w *watcher) await(ctx context.Context, revision int64) error {
	for {
		w.mu.Lock()
		reached, moved := w.reached, w.moved
		w.mu.Unlock()
		if reached >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("a watch at %s has told everything up to %d, not up to %d", w.server.Name, reached, revision)
		}
	}
}

// event is a frame of a watch.
type event struct {
	Type   string
	Object configMap
}

// follow receives one stream, and tells reach up to which revision.
func (a *access) follow(ctx context.Context, r *recorder, s *stream, seconds int, reach func(int64)) {
	path := fmt.Sprintf("%s?watch=true&allowWatchBookmarks=true&resourceVersion=%d&timeoutSeconds=%d", mapsPath, s.From, seconds)
	// A server that is paused does not end its streams in time.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+5)*time.Second)
	defer cancel()
	response, err := a.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		s.End = err.Error()
		return
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		s.End, s.Expired = response.Status, response.StatusCode == http.StatusGone
		return
	}
	for decoder := json.NewDecoder(response.Body); ; {
		var e event
		if err := decoder.Decode(&e); err != nil {
			s.End = err.Error()
			return
		}
		if e.Type == "ERROR" {
			s.End, s.Expired = e.Object.Message, e.Object.Code == http.StatusGone
			return
		}
		s.Changes = append(s.Changes, change{e.Type, e.Object.Metadata.Name, e.Object.Data[dataKey], e.Object.revision(), r.now()})
		reach(e.Object.revision())
	}
}

// resume asks, at a random server, for what happened since a random revision.
func resume(ctx context.Context, servers []*cluster.Node, r *recorder, random *rand.Rand) error {
	for {
		select {
		case <-time.After(time.Duration(300+random.IntN(900)) * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
		a, err := newAccess(servers[random.IntN(len(servers))])
		if err != nil {
			return err
		}
		s := stream{Server: a.server.Name, Resumed: true, From: r.earlier(random)}
		a.follow(ctx, r, &s, 1+random.IntN(2), func(int64) {})
		a.close()
		r.stream(s)
	}
}
