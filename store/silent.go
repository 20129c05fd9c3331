package store

import (
	"time"

	"github.com/hashicorp/raft"
)

// heartbeat takes in whether a server answered a heartbeat of the term, which
// was sent at began. A machine that lost its power says no last word, so its
// connection looks alive for as long as TCP has patience.
func (s *Store) heartbeat(term uint64, id raft.ServerID, began time.Time, answered bool) {
	// One of an earlier reign, which may fail late, says nothing of now.
	if r, _ := s.leadership.now(); r != nil && r.term == term && r.hear(id, began, answered) {
		s.linked.tell()
	}
}

// pulse is what the heartbeats tell of one server.
type pulse struct {
	heard  time.Time // the last answer
	silent bool
}

// hear notes a heartbeat, and tells whether the server is silent now and was not
// before, or the other way round. Heartbeats overtake each other: one that fails
// says nothing when a later one was answered.
func (r *reign) hear(id raft.ServerID, began time.Time, answered bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pulses[id]
	silent := p.silent
	switch {
	case answered:
		p = pulse{heard: time.Now()}
	case !p.heard.After(began):
		p.silent = true
	}
	r.pulses[id] = p
	return p.silent != silent
}
