package store

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestSilentFollower: a follower that is cut off without its connections ending
// counts as away, until it is back.
func TestSilentFollower(t *testing.T) {
	c := newTrio(t)
	leader := c.leader()
	name := c.others(leader.cfg.Name)[0]
	c.awaitAlive(leader, name, true)
	c.network.isolate(name, c.others(name)...)
	c.awaitAlive(leader, name, false)
	c.network.heal()
	c.awaitAlive(c.leader(), name, true)
	c.same()
}

// TestLateHeartbeat: a heartbeat that was sent in an earlier reign of this server
// and fails in the present one silences nobody.
func TestLateHeartbeat(t *testing.T) {
	now := time.Now()
	r := &reign{since: now, silent: make(map[raft.ServerID]bool)}
	failed := func(contact time.Time) raft.Observation {
		return raft.Observation{Data: raft.FailedHeartbeatObservation{PeerID: "b", LastContact: contact}}
	}
	for i, step := range []struct {
		heard           raft.Observation
		changed, silent bool
	}{
		{failed(now.Add(-time.Second)), false, false},
		{failed(now.Add(time.Second)), true, true},
		{failed(now.Add(time.Second)), false, true},
		{raft.Observation{Data: raft.ResumedHeartbeatObservation{PeerID: "b"}}, true, false},
	} {
		if changed := r.hear(step.heard); changed != step.changed || r.silent["b"] != step.silent {
			t.Errorf("step %d: changed %v, silent %v", i, changed, r.silent["b"])
		}
	}
}

// awaitAlive waits until s, which leads, says so of the server.
func (c *trio) awaitAlive(s *Store, name string, alive bool) {
	c.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		changed := s.MembersChanged()
		members, err := s.Members(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		for _, m := range members {
			if m.Name == name && m.Alive == alive {
				return
			}
		}
		select {
		case <-changed:
		case <-timeout:
			c.t.Fatalf("server %s alive: %v was waited for: %+v", name, alive, members)
		}
	}
}
