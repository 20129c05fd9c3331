package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"

	"orch/internal/durable"
)

// Backup writes the whole state as of one revision, which it gives. Writers are
// not held up. progress, if not nil, is told of the bytes written so far.
func (s *Store) Backup(ctx context.Context, w io.Writer, progress func(done, total int64)) (int64, error) {
	if err := s.fsm.flush(); err != nil {
		return 0, err
	}
	var revision int64
	meta, stream, err := s.state.openAt(&revision)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	if progress == nil {
		progress = func(_, _ int64) {}
	}
	_, err = io.Copy(w, &measured{ctx: ctx, Reader: stream, total: meta.Size, progress: progress})
	return revision, err
}

// measured is a stream that can be cancelled and tells how far it was read.
type measured struct {
	io.Reader
	ctx         context.Context
	done, total int64
	progress    func(done, total int64)
}

func (m *measured) Read(b []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.Reader.Read(b)
	m.done += int64(n)
	m.progress(m.done, m.total)
	return n, err
}

// Recovery makes the server of a data folder the only one of its group.
type Recovery struct {
	Dir     string    // the store's data folder
	Name    string    // of the server
	Address string    // at which others will reach it
	From    io.Reader // what Backup wrote; nil: the folder's own files
	Group   string    // that the backup is of, see GroupOf; "": unknown
	// Prepare, if set, adds files to the new folder, which come into force
	// together with the state.
	Prepare func(dir string) error
	// Progress, if set, is told how much of the folder's own state was copied.
	Progress func(done, total int64)
}

// revisionLeap is added to the revision: writes after the backup, or on servers
// that are gone, may have been seen by clients. What they remember is then too
// old to go on from, instead of naming other writes. At ten thousand writes a
// second it covers a day.
const revisionLeap = 1 << 30

// Recover does it, and gives the path of the folder that holds the old state.
// The store must not be running, and cannot be started meanwhile. When it is cut
// short, the old state stands.
func Recover(ctx context.Context, r Recovery) (old string, err error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("recover %s: %w", r.Dir, err) }
	if err := undoSwap(r.Dir); err != nil {
		return fail(err)
	}
	// The log's lock keeps others out until the new folder is in place.
	own := New(Config{Dir: r.Dir})
	defer func() { err = errors.Join(err, own.close()) }()
	found, err := r.openOwn(own)
	if err != nil {
		return fail(err)
	}
	aside, err := emptyAside(r.Dir)
	if err != nil {
		return fail(err)
	}
	group, err := r.inspect(ctx, own, found, aside)
	if err == nil {
		err = own.closeState()
	}
	if err == nil {
		err = r.build(aside, group)
	}
	if err != nil {
		return fail(errors.Join(err, os.RemoveAll(aside)))
	}
	if old, err = swap(aside, r.Dir); err != nil {
		return fail(err)
	}
	return old, nil
}

// openOwn opens the folder's own files and tells whether they are there and
// sound. A snapshot may replace what is damaged.
func (r *Recovery) openOwn(own *Store) (bool, error) {
	switch _, err := os.Stat(filepath.Join(r.Dir, "raft.db")); {
	case err == nil:
	case !errors.Is(err, os.ErrNotExist):
		return false, err
	case r.From == nil:
		return false, errors.New("there is no state to recover: give a snapshot, or the data folder of a server")
	default:
		return false, nil
	}
	err := own.open()
	if corrupt := (*CorruptError)(nil); r.From != nil && errors.As(err, &corrupt) {
		return false, nil
	}
	return err == nil, err
}

// inspect gives the name of the group and, when the folder's own state is to be
// kept, brings it up to its log.
func (r *Recovery) inspect(ctx context.Context, own *Store, found bool, aside string) (groupName, error) {
	group, err := parseGroup(r.Group)
	if err != nil || !found {
		return group, err
	}
	if err := own.readGroup(); err != nil {
		return group, err
	}
	if name := own.groupNow(); name.id != "" && (group.id == "" || name.supersedes(group)) {
		group = name
	}
	if r.From != nil {
		return group, nil
	}
	if err := own.replayAll(); err != nil {
		return group, err
	}
	return group, r.copyState(ctx, own, aside)
}

// replayAll applies the whole log: what this server has is all there is.
func (s *Store) replayAll() error {
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	for index := s.fsm.current().index + 1; index <= last; index++ {
		var log raft.Log
		if err := s.log.GetLog(index, &log); err != nil {
			return err
		}
		if log.Type == raft.LogCommand {
			s.fsm.Apply(&log)
		}
		if s.fsm.broken != nil {
			return s.fsm.broken
		}
	}
	return s.fsm.flush()
}

// copyState spools the state, so that old and new are never open together.
func (r *Recovery) copyState(ctx context.Context, s *Store, aside string) error {
	spool, err := os.OpenFile(filepath.Join(aside, "state.stream"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := s.Backup(ctx, spool, r.Progress); err != nil {
		return errors.Join(err, spool.Close())
	}
	_, err = spool.Seek(0, io.SeekStart)
	r.From = spool
	return err
}

// build makes the files of a group of one, as of its first log entry.
func (r *Recovery) build(aside string, group groupName) error {
	id := newServerID(r.Name)
	meta := raft.SnapshotMeta{
		Version: 1, Index: 1, Term: 1, ConfigurationIndex: 1,
		Configuration: raft.Configuration{Servers: []raft.Server{{ID: id, Address: raft.ServerAddress(r.Address)}}},
	}
	path := filepath.Join(aside, "state.db")
	if err := receive(path, r.From, meta, revisionLeap); err != nil {
		return err
	}
	if spool, ok := r.From.(*os.File); ok && spool.Name() == filepath.Join(aside, "state.stream") {
		if err := errors.Join(spool.Close(), os.Remove(spool.Name())); err != nil {
			return err
		}
	}
	state, _, _, err := openStateFile(path, bytesCodec{})
	if err == nil {
		err = state.close()
	}
	if err != nil {
		return err
	}
	log, err := openLogStore(filepath.Join(aside, "raft.db"), nil, func(error) {}, &notice{})
	if err != nil {
		return err
	}
	group = group.successor()
	if r.Prepare != nil {
		if err := r.Prepare(aside); err != nil {
			return errors.Join(err, log.close())
		}
	}
	return errors.Join(
		log.set(keyServerID, []byte(id)), log.set(keyGroup, []byte(group.String())),
		log.SetUint64(keyTerm, 1), log.close(), durable.SyncDir(aside),
	)
}

// Group names the group for a backup, so that a recovery can tell the servers
// of before.
func (s *Store) Group() string { return s.groupNow().String() }

// supersede makes room for joining anew: a recovered cluster goes on without
// this server's state, which is kept beside it.
func (s *Store) supersede(others []raft.ServerAddress) error {
	aside, err := emptyAside(s.cfg.Dir)
	if err != nil {
		return err
	}
	lines := make([]string, len(others))
	for i, address := range others {
		lines[i] = string(address)
	}
	// Without it the next start would found a group of its own.
	if err := writeSynced(filepath.Join(aside, joinFile), strings.Join(lines, "\n")); err != nil {
		return err
	}
	_, err = swap(aside, s.cfg.Dir)
	return err
}

// joinFile holds addresses of servers to join, one on each line.
const joinFile = "join"

// readJoin adds the addresses that supersede has left.
func (s *Store) readJoin() error {
	data, err := os.ReadFile(filepath.Join(s.cfg.Dir, joinFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	s.cfg.Join = append(strings.Fields(string(data)), s.cfg.Join...)
	return err
}
