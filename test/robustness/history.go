// Package robustness holds three servers to what a Kubernetes API promises while
// faults are injected: linearizable reads and writes, and watches that are
// ordered, complete and resumable. The recorded history is checked afterwards.
package robustness

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// kind of a call.
type kind string

const (
	create  kind = "create"
	update  kind = "update" // compare and swap: with the resourceVersion of a read
	put     kind = "put"    // an update without one
	patch   kind = "patch"
	remove  kind = "delete"  // with the uid and resourceVersion of a read as preconditions
	destroy kind = "destroy" // a delete without preconditions
	get     kind = "get"
	touch   kind = "touch" // a patch that changes nothing: it must not show an old state either
)

// outcome of a call, as its client knows it.
type outcome string

const (
	done     outcome = "done"
	missing  outcome = "missing"  // 404
	exists   outcome = "exists"   // 409 of a create
	conflict outcome = "conflict" // 409 of the others
	unknown  outcome = "unknown"  // it may have happened, or may still
)

// never is when a call returns of which nothing is known.
const never = time.Duration(1<<63 - 1)

// call is one request for one object. Times are since the start of the round.
type call struct {
	Client   int
	Server   string
	Kind     kind
	Key      string
	Value    string `json:",omitempty"` // what it writes: no other call writes the same
	Expect   int64  `json:",omitempty"` // resourceVersion that it wants to find
	Called   time.Duration
	Returned time.Duration
	Outcome  outcome
	Found    string `json:",omitempty"` // value in the answer
	Revision int64  `json:",omitempty"` // resourceVersion in the answer; 0: it has none
	Stale    bool   `json:",omitempty"` // a get that asks for any version
	Failure  string `json:",omitempty"` // why the outcome is unknown
}

// failure says in a word why there is no certain answer.
func (c *call) failure() string {
	for _, sign := range []string{"not ready", "connection refused", "deadline exceeded", "connection reset", "EOF", "handshake timeout", "broken pipe", "500", "503", "504"} {
		if strings.Contains(c.Failure, sign) {
			return sign
		}
	}
	return "something else"
}

// writes tells whether a call that is done has changed something.
func (c *call) writes() bool { return c.Kind != get && c.Kind != touch }

func (c *call) deletes() bool { return c.Kind == remove || c.Kind == destroy }

// item is an object as a list or an event shows it.
type item struct {
	Value    string
	Revision int64
}

// listing is one consistent list, read in one page or in several.
type listing struct {
	Client   int
	Server   string
	Pages    int
	Called   time.Duration
	Returned time.Duration // of the first page, which fixes the revision
	Revision int64
	Items    map[string]item
	Torn     int64 `json:",omitempty"` // revision of a page that is of another
}

// change is what a watch tells.
type change struct {
	Type     string // ADDED MODIFIED DELETED BOOKMARK
	Key      string `json:",omitempty"`
	Value    string `json:",omitempty"` // of a deletion: what was deleted
	Revision int64
	At       time.Duration // when it was received
}

// stream is one watch request, from its beginning to its end.
type stream struct {
	Server  string
	Resumed bool  // by another client's revision, at random
	From    int64 // what happened up to here is not asked for
	Changes []change
	End     string // why it ended
	Expired bool   // it ended because the server has forgotten what was asked for
}

// upTo is the revision up to which the stream has told everything.
func (s *stream) upTo() int64 {
	if n := len(s.Changes); n > 0 {
		return max(s.From, s.Changes[n-1].Revision)
	}
	return s.From
}

// history is all that was seen in one round.
type history struct {
	Base     int64 // revision before the first call; none of the keys exists at it
	Keys     []string
	Calls    []call
	Listings []listing
	Streams  []stream
	Final    []listing // one of each server, after all faults were healed
}

// recorder gathers a history from many goroutines.
type recorder struct {
	began time.Time
	mu    sync.Mutex
	h     history // guarded by mu
}

func newRecorder(keys []string) *recorder {
	return &recorder{began: time.Now(), h: history{Keys: keys}}
}

func (r *recorder) now() time.Duration { return time.Since(r.began) }

func (r *recorder) call(c call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Calls = append(r.h.Calls, c)
}

func (r *recorder) listing(l listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Listings = append(r.h.Listings, l)
}

func (r *recorder) stream(s stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Streams = append(r.h.Streams, s)
}

// earlier is the revision of some write of this round.
func (r *recorder) earlier(random *rand.Rand) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.h.Calls); n > 0 {
		return max(r.h.Base, r.h.Calls[random.IntN(n)].Revision)
	}
	return r.h.Base
}

// save writes the history to a file, to be looked at or checked again.
func (h *history) save(dir string) error {
	data, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "history.json"), data, 0o644)
}

func loadHistory(path string) (*history, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h := new(history)
	return h, json.Unmarshal(data, h)
}

// counts words how often each thing was.
func counts(of map[string]int) string {
	parts := make([]string, 0, len(of))
	for _, name := range slices.Sorted(maps.Keys(of)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(parts, ", ")
}
