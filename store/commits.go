package store

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"
)

// commits is what the leader said it has committed, until this server has the
// entry and can tell its Raft so.
type commits struct {
	appended notice // told of each append to the log

	mu     sync.Mutex
	leader raft.Server // guarded by mu
	reign  uint64      // guarded by mu
	at     position    // newest commit heard of; guarded by mu
	heard  chan struct{}
}

func (c *commits) hear(leader raft.Server, reign uint64, at position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader, c.reign, c.at = leader, reign, at
	signal(c.heard)
}

func (c *commits) newest() (raft.Server, uint64, position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader, c.reign, c.at
}

// passCommits tells Raft of commits until ctx ends.
func (s *Store) passCommits(ctx context.Context) error {
	for {
		select {
		case <-s.commits.heard:
		case <-ctx.Done():
			return nil
		}
		for {
			appended := s.commits.appended.wait()
			leader, reign, at := s.commits.newest()
			if s.raft.CommitIndex() >= at.index {
				break
			}
			if s.log.last.Load() >= at.index {
				s.transport.hearCommit(ctx, leader, reign, at.index, at.term)
				break
			}
			select { // the entry is still on its way
			case <-appended:
			case <-s.commits.heard:
			case <-ctx.Done():
				return nil
			}
		}
	}
}
