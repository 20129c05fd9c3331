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

// TestLateHeartbeat: a heartbeat that fails after a later one was answered, or
// was sent in an earlier reign, silences nobody.
func TestLateHeartbeat(t *testing.T) {
	s := &Store{}
	r := &reign{term: 6, over: make(chan struct{}), pulses: make(map[raft.ServerID]pulse)}
	s.leadership.set(r)
	before := time.Now()
	for i, step := range []struct {
		term         uint64
		began        time.Time
		answered     bool
		told, silent bool
	}{
		{4, before, false, false, false},
		{6, before, false, true, true},
		{6, before, false, false, true},
		{4, before, true, false, true},
		{6, before, true, true, false},
		{6, before, false, false, false},
		{4, before.Add(time.Hour), false, false, false},
		{6, before.Add(time.Hour), false, true, true},
	} {
		changed := s.linked.wait()
		s.heartbeat(step.term, "b", step.began, step.answered)
		told := false
		select {
		case <-changed:
			told = true
		default:
		}
		if silent := r.pulses["b"].silent; told != step.told || silent != step.silent {
			t.Errorf("step %d: told %v, silent %v", i, told, silent)
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
