package store

import (
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
)

// fsm applies committed log entries to memory and keeps what the state file
// does not have yet. It is the raft.BatchingFSM; Raft calls it from one
// goroutine.
type fsm struct {
	memory    *mvcc
	state     *stateFile
	proposals *proposer
	snapshots *snapshotStore
	space     *space
	decoded   decodedProposals
	failed    func(error) // told when an entry cannot be applied; the store stops
	logger    *slog.Logger

	// Guarded by memory.mu, so that they match what is in memory.
	head       head
	last       position          // of the newest entry applied; others may follow it that mean nothing to us
	dirty      map[string]record // by key, what the state file lacks
	dirtyBytes int
	broken     error // set when an entry could not be applied: none after it may be

	// progress tells those who wait that head has moved.
	progress notice

	// changed has a token when there is something to flush.
	changed chan struct{}

	flushing sync.Mutex // one flush at a time
	flushed  head       // what the state file holds; guarded by flushing
}

// command is a log entry on its way into memory.
type command struct {
	local   *batch // nil when another process, or an earlier run, proposed it
	updates [][]Op // none when the proposal was for another term
}

// Apply applies one entry.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch applies entries under one lock and wakes each watcher and caller
// once. It responds with each entry's term.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	commands := make([]command, len(logs))
	var err error
	for i, log := range logs {
		if log.Type == raft.LogCommand && err == nil {
			commands[i], err = f.prepare(log)
		}
	}
	touched := make(map[*eventLog]struct{})
	f.memory.mu.Lock()
	if err != nil && f.broken == nil {
		f.broken = err
	}
	for i, log := range logs {
		responses[i] = log.Term
		if f.broken == nil {
			f.apply(log, commands[i], touched)
		}
	}
	f.memory.mu.Unlock()

	for l := range touched {
		l.wake()
	}
	f.progress.tell()
	for i := range commands {
		if b := commands[i].local; b != nil {
			b.finish(err)
		}
	}
	if err != nil {
		f.failed(err)
	}
	signal(f.changed)
	signal(f.memory.grown)
	return responses
}

// prepare gets the updates of an entry without the lock: their decoding is the
// costly part on replay.
func (f *fsm) prepare(log *raft.Log) (command, error) {
	header, _, _, err := decodeProposalHeader(log.Data)
	switch {
	case err != nil:
	case header.term != log.Term:
		f.proposals.refuse(header.origin, header.sequence)
		return command{}, nil
	default:
		if b := f.proposals.take(header.origin, header.sequence); b != nil {
			return command{local: b, updates: b.updates()}, nil
		}
		if updates := f.decoded.take(header.origin, header.sequence); updates != nil {
			return command{updates: updates}, nil
		}
	}
	updates, err := f.decode(log.Data)
	if err != nil {
		return command{}, fmt.Errorf("log entry %d cannot be applied, it may need a newer orch: %w", log.Index, err)
	}
	return command{updates: updates}, nil
}

func (f *fsm) decode(data []byte) ([][]Op, error) {
	p, err := decodeProposal(data)
	for _, ops := range p.updates {
		if err == nil {
			err = decode(f.memory.codec, ops)
		}
	}
	return p.updates, err
}

// apply holds memory's lock.
func (f *fsm) apply(log *raft.Log, c command, touched map[*eventLog]struct{}) {
	// The state file may be ahead of the snapshot that Raft knows of.
	if log.Index <= f.head.index {
		return
	}
	f.head.index, f.head.term = log.Index, log.Term
	f.last = f.head.at()
	if log.Type == raft.LogConfiguration {
		f.head.configuration = raft.DecodeConfiguration(log.Data)
		f.head.configurationIndex = log.Index
		return
	}
	for i, ops := range c.updates {
		var entries []*Entry
		err := f.memory.check(ops)
		if err == nil {
			entries = f.memory.apply(ops, touched)
			f.note(ops, entries)
		}
		if c.local != nil {
			c.local.waiting[i].entries, c.local.waiting[i].err = entries, err
		}
	}
	f.head.revision = f.memory.revision
}

// note remembers for the flush what ops did.
func (f *fsm) note(ops []Op, entries []*Entry) {
	for i, entry := range entries {
		if entry == nil {
			continue
		}
		r := record{create: entry.CreateRevision, mod: entry.ModRevision, value: ops[i].Value}
		if old, ok := f.dirty[entry.Key]; ok {
			f.dirtyBytes -= weight(entry.Key, old)
		}
		f.dirty[entry.Key] = r
		f.dirtyBytes += weight(entry.Key, r)
	}
}

// weight is about what an unflushed record takes in memory.
func weight(key string, r record) int { return len(key) + len(r.value) + 64 }

// flush brings the state file up to now. What cannot be written stays dirty. On a
// full disk it does not try: the log has it all, and needs what space is left.
func (f *fsm) flush() error {
	f.flushing.Lock()
	defer f.flushing.Unlock()
	if err := f.space.readOnly(); err != nil {
		return err
	}
	f.memory.mu.Lock()
	h, records, size := f.head, f.dirty, f.dirtyBytes
	if h.index == f.flushed.index {
		f.memory.mu.Unlock()
		return nil
	}
	f.dirty, f.dirtyBytes = make(map[string]record), 0
	f.memory.mu.Unlock()

	if err := f.state.write(h, records); err != nil {
		f.giveBack(records, size)
		if noSpace(err) {
			f.space.exhausted()
		}
		return fmt.Errorf("write %s: %w", f.state.path, err)
	}
	f.flushed = h
	return nil
}

// giveBack makes records dirty again, except where there is a newer write.
func (f *fsm) giveBack(records map[string]record, size int) {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	newer := f.dirty
	f.dirty, f.dirtyBytes = records, size
	for key, r := range newer {
		if old, ok := records[key]; ok {
			f.dirtyBytes -= weight(key, old)
		}
		records[key] = r
		f.dirtyBytes += weight(key, r)
	}
}

// unflushed is the size of what a flush would write.
func (f *fsm) unflushed() int {
	f.memory.mu.RLock()
	defer f.memory.mu.RUnlock()
	return f.dirtyBytes
}

// current is the head of what is in memory.
func (f *fsm) current() head {
	f.memory.mu.RLock()
	defer f.memory.mu.RUnlock()
	return f.head
}

// advance notes that Raft has taken a snapshot at meta: entries up to there
// that the fsm never sees (a new leader's empty one) are covered by the file too.
func (f *fsm) advance(meta raft.SnapshotMeta) error {
	f.memory.mu.Lock()
	if meta.Index > f.head.index {
		f.head.index, f.head.term = meta.Index, meta.Term
	}
	if meta.ConfigurationIndex > f.head.configurationIndex {
		f.head.configuration, f.head.configurationIndex = meta.Configuration, meta.ConfigurationIndex
	}
	f.memory.mu.Unlock()
	return f.flush()
}

// Snapshot gives the state file itself: see snapshotStore.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return stateSnapshot{f}, nil }

// Restore replaces file and memory by the snapshot received, or neither.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	meta, ok := f.snapshots.received()
	if !ok {
		return fmt.Errorf("restore: no snapshot was received")
	}
	if meta.Index <= f.current().index {
		// Raft may hand over a snapshot that is older than what has been applied
		// (hashicorp/raft issue 248). Going back would lose acknowledged writes.
		return nil
	}
	f.flushing.Lock()
	defer f.flushing.Unlock()
	h, entries, err := f.state.restore(source, meta, f.memory.codec)
	if err != nil {
		return err
	}
	f.memory.reset(entries, h.revision)
	f.memory.mu.Lock()
	f.head, f.dirty, f.dirtyBytes, f.flushed = h, make(map[string]record), 0, h
	f.memory.mu.Unlock()
	// The snapshot may hold what we proposed, but not what came of it.
	f.proposals.lose(ErrUnknownOutcome)
	f.progress.tell()
	f.logger.Info("state taken over from the leader, whose log begins later", "index", h.index, "revision", h.revision)
	return nil
}

// signal leaves a token in a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
