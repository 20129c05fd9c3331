package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/hashicorp/raft"
)

// Stable values; all but the first are raft's.
var (
	keyServerID = []byte("orch/server-id")
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
)

// join takes part in the Raft group, which the first server founds.
func (s *Store) join(notices chan<- bool) error {
	var err error
	if s.id, err = s.serverID(); err != nil {
		return err
	}
	if err := s.readGroup(); err != nil {
		return err
	}
	s.peers = s.cfg.Peers
	streams := s.cfg.Raft
	if streams == nil {
		streams = nowhere{address(s.id), make(chan struct{})}
		s.peers = nowhere{address(s.id), make(chan struct{})}
	}
	s.transport = newTransport(newGroupLayer(streams, s.groupNow, s.meet), s.hclog, s.log.stuck, s.heartbeat)
	cfg := raftConfig(s.id, notices, s.hclog)
	if err := s.found(cfg, s.transport); err != nil {
		return errors.Join(err, s.transport.Close())
	}
	s.log.running.Store(true)
	if s.raft, err = raft.NewRaft(cfg, s.fsm, s.log, s.log, s.fsm.snapshots, s.transport); err != nil {
		return errors.Join(err, s.transport.Close())
	}
	return s.hasten(cfg)
}

// isNew tells whether this server waits to be let in.
func (s *Store) isNew() bool { return len(s.cfg.Join) > 0 && s.fsm.current().index == 0 }

// raftConfig is tuned for few, busy servers near each other: a lost leader is
// replaced within two seconds.
func raftConfig(id raft.ServerID, notices chan<- bool, logger *raftLogger) *raft.Config {
	cfg := raft.DefaultConfig()
	cfg.LocalID = id
	cfg.NotifyCh = notices
	cfg.Logger = logger
	cfg.HeartbeatTimeout = heartbeatTimeout + time.Millisecond
	cfg.ElectionTimeout = cfg.HeartbeatTimeout
	cfg.LeaderLeaseTimeout = leaderLease
	cfg.MaxAppendEntries = 256
	// Servers hear of commits from tellCommits; this is for those without a link.
	cfg.CommitTimeout = 250 * time.Millisecond
	cfg.ShutdownOnRemove = false
	// The state is read from its file before raft starts.
	cfg.NoSnapshotRestoreOnStart = true
	// keepFlushed alone decides when to truncate the log.
	cfg.SnapshotInterval = math.MaxInt64 / 4
	cfg.SnapshotThreshold = math.MaxUint64
	cfg.TrailingLogs = 0
	return cfg
}

const (
	heartbeatTimeout = 500 * time.Millisecond
	// leaderLease is how long a leader that hears of nobody goes on leading.
	leaderLease = 400 * time.Millisecond
)

// found makes this server the sole voter of a new group.
func (s *Store) found(cfg *raft.Config, transport raft.Transport) error {
	if len(s.cfg.Join) > 0 {
		return nil
	}
	if s.groupNow().id == "" {
		if err := s.enterGroup(newGroup().String()); err != nil {
			return err
		}
	}
	last, err := s.log.LastIndex()
	if err != nil || last > 0 || s.fsm.head.index > 0 {
		return err
	}
	// A founding that was cut short has left its term but no log entry.
	if err := s.log.unset(keyTerm); err != nil {
		return s.log.explain(err)
	}
	return raft.BootstrapCluster(cfg, s.log, s.log, s.fsm.snapshots, transport, raft.Configuration{
		Servers: []raft.Server{{ID: cfg.LocalID, Address: transport.LocalAddr()}},
	})
}

// hasten makes a server that is alone elect itself at once. Raft looks at a
// shortened heartbeat timeout immediately, and finds that it has no leader.
func (s *Store) hasten(cfg *raft.Config) error {
	future := s.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return err
	}
	servers := future.Configuration().Servers
	if len(servers) != 1 || servers[0].ID != cfg.LocalID {
		return nil
	}
	reload := s.raft.ReloadableConfig()
	reload.HeartbeatTimeout = heartbeatTimeout
	return s.raft.ReloadConfig(reload)
}

// serverID is made at the first start and kept for good.
func (s *Store) serverID() (raft.ServerID, error) {
	id, err := s.log.Get(keyServerID)
	if errors.Is(err, errNotFound) {
		id = []byte(newServerID(s.cfg.Name))
		if err := s.log.set(keyServerID, id); err != nil {
			return "", err
		}
		err = nil
	}
	return raft.ServerID(id), err
}

func randomID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
