package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshotStore is the raft.SnapshotStore. The state file is the only snapshot
// there is: to take one is to flush. What another server sends is spooled to a
// file of its own until it is restored.
type snapshotStore struct {
	fsm *fsm
	dir string

	mu       sync.Mutex
	incoming *raft.SnapshotMeta // the complete spool file, if any; guarded by mu
}

const (
	snapshotID = "state"
	incomingID = "incoming"
)

func (s *snapshotStore) spool() string { return filepath.Join(s.dir, "incoming.snapshot") }

func (h head) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: 1, ID: snapshotID, Index: h.index, Term: h.term,
		Configuration: h.configuration, ConfigurationIndex: h.configurationIndex,
	}
}

// List gives the state on file, or nothing before the first flush.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.fsm.flushing.Lock()
	defer s.fsm.flushing.Unlock()
	if s.fsm.flushed.configurationIndex == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{s.fsm.flushed.meta()}, nil
}

// Open gives a stream of the state on file, which may be newer than the one
// listed, or of the spool.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == snapshotID {
		return s.fsm.state.open()
	}
	meta, ok := s.received()
	if !ok || id != incomingID {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, os.ErrNotExist)
	}
	file, err := os.Open(s.spool())
	return &meta, file, err
}

// Create begins a snapshot: one of our own, in which nothing is written, or the
// reception of another server's.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("snapshot version %d is not supported", version)
	}
	return &snapshotSink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: snapshotID, Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// received tells which snapshot lies complete in the spool.
func (s *snapshotStore) received() (raft.SnapshotMeta, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incoming == nil {
		return raft.SnapshotMeta{}, false
	}
	return *s.incoming, true
}

// snapshotSink receives one snapshot.
type snapshotSink struct {
	store  *snapshotStore
	meta   raft.SnapshotMeta
	spool  *os.File // nil for a snapshot of our own
	closed bool
}

// ID names the snapshot for Open.
func (k *snapshotSink) ID() string { return k.meta.ID }

// Write is only called for snapshots of other servers.
func (k *snapshotSink) Write(b []byte) (int, error) {
	if k.spool == nil {
		file, err := os.OpenFile(k.store.spool(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, err
		}
		k.spool, k.meta.ID = file, incomingID
	}
	n, err := k.spool.Write(b)
	k.meta.Size += int64(n)
	return n, err
}

// Close makes the snapshot complete. Raft may call it twice.
func (k *snapshotSink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	if k.spool == nil {
		return k.store.fsm.advance(k.meta)
	}
	// No fsync: until it is restored, which makes it durable, the leader has no
	// acknowledgement and sends it again.
	if err := k.spool.Close(); err != nil {
		return err
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	k.store.incoming = &k.meta
	return nil
}

// Cancel drops what was received.
func (k *snapshotSink) Cancel() error {
	if k.closed || k.spool == nil {
		k.closed = true
		return nil
	}
	k.closed = true
	return errors.Join(k.spool.Close(), os.Remove(k.spool.Name()))
}

// stateSnapshot is the raft.FSMSnapshot.
type stateSnapshot struct{ fsm *fsm }

// Persist flushes: with that the state file is the snapshot. A sink that is not
// ours gets the stream.
func (s stateSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.fsm.flush(); err != nil {
		return err
	}
	if _, ours := sink.(*snapshotSink); ours {
		return nil
	}
	_, stream, err := s.fsm.state.open()
	if err != nil {
		return err
	}
	defer stream.Close()
	if _, err := io.Copy(sink, stream); err != nil {
		return err
	}
	return sink.Close()
}

// Release has nothing to let go of.
func (stateSnapshot) Release() {}
