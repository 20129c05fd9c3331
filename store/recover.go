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
	"golang.org/x/sys/unix"
)

// Backup writes the whole state as of one revision, which it gives. Writers are
// not held up.
func (s *Store) Backup(ctx context.Context, w io.Writer) (int64, error) {
	if err := s.fsm.flush(); err != nil {
		return 0, err
	}
	var revision int64
	_, stream, err := s.state.openAt(&revision)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	_, err = io.Copy(w, &cancellable{ctx, stream})
	return revision, err
}

type cancellable struct {
	ctx context.Context
	io.Reader
}

func (c *cancellable) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(b)
}

// Recovery makes the server of a data folder the only one of its group.
type Recovery struct {
	Dir     string    // the store's data folder
	Name    string    // of the server
	Address string    // at which others will reach it
	From    io.Reader // what Backup wrote; nil: the folder's own files
	Group   string    // that the backup is of, see GroupOf; "": unknown
}

// revisionLeap is added to the revision: writes after the backup, or on servers
// that are gone, may have been seen by clients. What they remember is then too
// old to go on from, instead of naming other writes.
const revisionLeap = 1 << 20

// Recover does it, and gives the path of the folder that holds the old state.
// The store must not be running. When it is cut short, the old state stands.
func Recover(ctx context.Context, r Recovery) (old string, err error) {
	aside := r.Dir + ".new"
	if err := errors.Join(os.RemoveAll(aside), os.MkdirAll(aside, 0o700)); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("recover %s: %w", r.Dir, err), os.RemoveAll(aside))
		}
	}()
	own, err := r.inspect(ctx, aside)
	if err != nil {
		return "", err
	}
	if err := r.build(aside, own); err != nil {
		return "", err
	}
	return r.swap(aside)
}

// inspect brings the folder's own state up to its log, when it is to be kept,
// and gives the name of its group.
func (r *Recovery) inspect(ctx context.Context, aside string) (groupName, error) {
	group, err := parseGroup(r.Group)
	if err != nil {
		return groupName{}, err
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "raft.db")); errors.Is(err, os.ErrNotExist) {
		if r.From == nil {
			return groupName{}, errors.New("there is no state to recover: give a snapshot, or the data folder of a server")
		}
		return group, nil
	}
	s := New(Config{Dir: r.Dir})
	if err := s.open(); err != nil {
		var corrupt *CorruptError
		if r.From != nil && errors.As(err, &corrupt) {
			return group, s.close() // what is damaged is what the snapshot replaces
		}
		return groupName{}, errors.Join(err, s.close())
	}
	err = s.readGroup()
	if own := s.groupNow(); own.id != "" && (group.id == "" || group.id == own.id && group.number < own.number) {
		group = own
	}
	if err == nil && r.From == nil {
		err = s.replayAll()
	}
	if err == nil && r.From == nil {
		err = r.copyState(ctx, s, aside)
	}
	return group, errors.Join(err, s.close())
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
	if _, err := s.Backup(ctx, spool); err != nil {
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
	log, err := openLogStore(filepath.Join(aside, "raft.db"), func(error) {}, &notice{})
	if err != nil {
		return err
	}
	if group.id == "" {
		group = newGroup()
	}
	group.number++
	return errors.Join(
		log.set(keyServerID, []byte(id)), log.set(keyGroup, []byte(group.String())),
		log.SetUint64(keyTerm, 1), log.close(), syncDir(aside),
	)
}

// swap puts the new folder in the old one's place in one step.
func (r *Recovery) swap(aside string) (old string, err error) {
	err = unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, r.Dir, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = os.Rename(aside, r.Dir)
	case err == nil:
		old = r.Dir + ".old"
		if err = os.RemoveAll(old); err == nil {
			err = os.Rename(aside, old)
		}
	}
	if err != nil {
		return "", err
	}
	return old, syncDir(filepath.Dir(r.Dir))
}

// Group names the group for a backup, so that a recovery can tell the servers
// of before.
func (s *Store) Group() string { return s.groupNow().String() }

// supersede makes room for joining anew: a recovered cluster goes on without
// this server's state, which is kept beside it.
func (s *Store) supersede(others []raft.ServerAddress) error {
	old := s.cfg.Dir + ".old"
	err := errors.Join(os.RemoveAll(old), os.Rename(s.cfg.Dir, old), os.Mkdir(s.cfg.Dir, 0o700))
	if err != nil {
		return err
	}
	lines := make([]string, len(others))
	for i, address := range others {
		lines[i] = string(address)
	}
	// Without it the next start would found a group of its own.
	return os.WriteFile(filepath.Join(s.cfg.Dir, joinFile), []byte(strings.Join(lines, "\n")), 0o600)
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
