package store

import (
	"testing"
	"time"
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
