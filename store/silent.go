package store

import (
	"context"

	"github.com/hashicorp/raft"
)

// hearSilence follows which servers answer the leader's heartbeats, until ctx
// ends. A machine that lost its power says no last word, so its connection looks
// alive for as long as TCP has patience.
func (s *Store) hearSilence(ctx context.Context) error {
	// Raft repeats a failure until it is over, and says once that it is; there is
	// room for both however late this goroutine runs.
	seen := make(chan raft.Observation, 256)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	for {
		select {
		case o := <-seen:
			if r, _ := s.leadership.now(); r != nil && r.hear(o) {
				s.linked.tell()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// hear takes in what Raft says of a server, and tells whether that changes
// anything. A heartbeat of an earlier reign that fails late says nothing of now,
// and nobody would take it back.
func (r *reign) hear(o raft.Observation) (changed bool) {
	switch heard := o.Data.(type) {
	case raft.FailedHeartbeatObservation:
		return heard.LastContact.After(r.since) && r.setSilent(heard.PeerID, true)
	case raft.ResumedHeartbeatObservation:
		return r.setSilent(heard.PeerID, false)
	}
	return false
}

func (r *reign) setSilent(id raft.ServerID, silent bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = r.silent[id] != silent
	if silent {
		r.silent[id] = true
	} else {
		delete(r.silent, id)
	}
	return changed
}
