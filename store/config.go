package store

import (
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// Config says where and how a store keeps its data.
type Config struct {
	Dir    string       // data folder; made with mode 0700 when absent
	Codec  Codec        // nil: objects are the bytes themselves
	Logger *slog.Logger // nil: slog.Default

	// Lane names the lane that the object is in, "" for none: what distinguishes
	// the events that most watchers of its resource want. It is no key, and names
	// its resource. It is asked under a lock for every write. nil: no lanes.
	Lane func(key string, object any) string

	// Events older than HistoryAge are forgotten; 0: 5 minutes. Beyond the newest
	// HistorySize events of all resources (0: 10,000) they are forgotten as soon
	// as a twentieth of HistoryAge has passed, and at once beyond four times
	// HistorySize, or when they hold more than 16 MiB of values that are no more.
	HistoryAge  time.Duration
	HistorySize int

	// Writes reach the state file FlushDelay after they were made at the latest (0:
	// 2 minutes); a Raft log larger than LogBytes is then cut (0: 32 MiB), so that a
	// server that was away for longer is sent the whole state.
	FlushDelay time.Duration
	LogBytes   int64

	// Name of this server among the members; no two members share one.
	Name string
	// Raft carries Raft's streams between the servers and Peers ours. Their Addr is
	// where others reach this server, the same for both. nil: no others can.
	Raft, Peers raft.StreamLayer
	// Join holds addresses of servers of the group that a new server asks to let
	// it in, instead of founding a group of its own. A server that has been let in
	// once remembers its group.
	Join []string

	tuning tuning
}

// tuning holds the thresholds that tests set lower.
type tuning struct {
	flushDelay time.Duration // longest time that a write stays in the log only
	flushBytes int           // bytes of unflushed values that make a flush due at once
	logBytes   int64         // size of the raft log that makes its truncation due

	historyBytes int           // bytes of values of the past that the history holds
	leaderWait   time.Duration // how long writes and reads wait for a leader
}

func (c Config) withDefaults() Config {
	if c.Codec == nil {
		c.Codec = bytesCodec{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = c.Logger.With("component", "store")
	if c.HistoryAge == 0 {
		c.HistoryAge = 5 * time.Minute
	}
	if c.HistorySize == 0 {
		c.HistorySize = 10_000
	}
	if c.FlushDelay != 0 {
		c.tuning.flushDelay = c.FlushDelay
	}
	if c.LogBytes != 0 {
		c.tuning.logBytes = c.LogBytes
	}
	c.tuning = c.tuning.withDefaults()
	return c
}

func (t tuning) withDefaults() tuning {
	// Flushing seldom spares flash: replaying the log is fast, and an idle
	// cluster's leases then reach the state file twelve at a time.
	if t.flushDelay == 0 {
		t.flushDelay = 2 * time.Minute
	}
	if t.flushBytes == 0 {
		t.flushBytes = 16 << 20
	}
	if t.logBytes == 0 {
		t.logBytes = 32 << 20
	}
	if t.historyBytes == 0 {
		t.historyBytes = 16 << 20
	}
	// Long enough for an election that goes wrong twice.
	if t.leaderWait == 0 {
		t.leaderWait = 6 * time.Second
	}
	return t
}
