package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"orch/internal/durable"
	"orch/internal/joining"
	"orch/internal/pki"
	"orch/server/backup"
	"orch/server/join"
	"orch/store"
)

// Recovery says how a server becomes the only one of its cluster.
type Recovery struct {
	From string    // a snapshot's name or path; "": the server's own files
	S3   backup.S3 // where a snapshot is that is not on this machine
	// Once makes a second recovery from the same source do nothing until the
	// server was started without one: a service manager repeats the command.
	Once bool
}

// onceFile lies in the store's folder and holds what it was recovered from.
const onceFile = "recovered"

func storeDir(dataDir string) string { return filepath.Join(dataDir, "server", "store") }

// Recover makes this server the only one of its cluster, with the state of a
// snapshot, or with its own. The server must not be running.
func Recover(ctx context.Context, cfg Config, r Recovery) error {
	log := cfg.Logger.With("component", "server")
	unlock, err := lockRecovery(filepath.Join(cfg.DataDir, "server"))
	if err != nil {
		return err
	}
	defer unlock()
	done, err := os.ReadFile(filepath.Join(storeDir(cfg.DataDir), onceFile))
	if r.Once && err == nil && string(done) == r.From {
		log.Warn("recovered already, so the server goes on with what it has: take --recover off its command line")
		return nil
	}
	recovery := store.Recovery{
		Dir: storeDir(cfg.DataDir), Name: cfg.NodeName,
		Address:  net.JoinHostPort(cfg.AdvertiseAddress.String(), fmt.Sprint(cfg.Port)),
		Progress: logProgress(cfg.Logger, "recovering"),
	}
	source, pending := "this server's files", (*joining.ServerAnswer)(nil)
	if r.From != "" {
		snapshot, err := backup.Find(ctx, SnapshotDir(cfg.DataDir), r.From, r.S3, logProgress(cfg.Logger, "fetching the snapshot"))
		if err != nil {
			return fmt.Errorf("--from: %w", err)
		}
		defer snapshot.Close()
		snapshot.Progress = recovery.Progress
		source, recovery.From, recovery.Group = snapshot.Path, snapshot, snapshot.Group
		if pending, err = fittingKeys(filepath.Join(cfg.DataDir, "server"), snapshot.Header); err != nil {
			return fmt.Errorf("--from: %w", err)
		}
	}
	recovery.Prepare = func(dir string) error { return prepare(dir, r, pending) }
	old, err := store.Recover(ctx, recovery)
	if err != nil {
		return err
	}
	if err := join.TakePending(filepath.Join(cfg.DataDir, "server")); err != nil {
		return err
	}
	log.Info("cluster recovered: this is its only server now", "from", source, "before", old)
	return nil
}

// lockRecovery keeps a second recovery out: both would build the next state in
// the same place. The lock is on the folder and goes with the process.
func lockRecovery(dir string) (unlock func(), err error) {
	if err := durable.MakeDir(dir); err != nil {
		return nil, err
	}
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another recovery or restore of %s is under way: %w", dir, err), file.Close())
	}
	return func() { file.Close() }, nil
}

// fittingKeys gives the keys that a machine without any needs beside the state of
// a snapshot; nil when it has those of the same cluster.
func fittingKeys(dir string, h backup.Header) (*joining.ServerAnswer, error) {
	if !join.Joined(dir) {
		answer := &joining.ServerAnswer{Files: h.Keys}
		if h.Settings != nil {
			answer.Settings = *h.Settings
		}
		return answer, nil
	}
	same, err := join.SameCluster(dir, h.Keys)
	if err == nil && !same {
		err = fmt.Errorf("the snapshot %s is of another cluster than the server on this machine: when that one is of no use any more, move %s away and recover again", h.Name, dir)
	}
	if err == nil {
		err = join.AddEncryptionKeys(dir, h.Keys)
	}
	return nil, err
}

func prepare(dir string, r Recovery, pending *joining.ServerAnswer) error {
	if pending != nil {
		if err := join.LeavePending(dir, pending); err != nil {
			return err
		}
	}
	if !r.Once {
		return nil
	}
	return pki.WriteFile(filepath.Join(dir, onceFile), []byte(r.From), 0o600)
}

// ForgetRecovery lets the next recovery happen, whatever it is from: the server
// was started without one.
func ForgetRecovery(dataDir string) error {
	err := os.Remove(filepath.Join(storeDir(dataDir), onceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
