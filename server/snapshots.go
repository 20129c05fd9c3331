package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"orch/internal/version"
	"orch/server/backup"
	"orch/server/join"
	"orch/store"
)

// SnapshotDir is where a server keeps snapshots.
func SnapshotDir(dataDir string) string { return filepath.Join(dataDir, "server", "snapshots") }

// pathSnapshots is the endpoint of `orch snapshot save`: POST with ?name=.
const pathSnapshots = "/v1-orch/snapshots"

func (a *assembly) serveSnapshots(w http.ResponseWriter, r *http.Request) {
	if status, reason := a.mayAdminister(r); status != 0 {
		http.Error(w, reason, status)
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "snapshot-" + time.Now().UTC().Format("20060102-150405")
	}
	header, err := a.snapshotHeader(name)
	var info backup.Info
	if err == nil {
		info, err = backup.Save(r.Context(), SnapshotDir(a.cfg.DataDir), header, a.store)
	}
	switch {
	case errors.Is(err, backup.ErrExists):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(info) // the client went away
	}
}

func (a *assembly) snapshotHeader(name string) (backup.Header, error) {
	keys, err := join.SharedFiles(filepath.Join(a.cfg.DataDir, "server"))
	return backup.Header{Name: name, Created: time.Now().UTC(), Server: a.cfg.NodeName, Version: version.Orch, Keys: keys}, err
}

func (a *assembly) snapshotSchedule() *backup.Schedule {
	return &backup.Schedule{
		Interval: a.cfg.SnapshotInterval, Retain: a.cfg.SnapshotRetention, Dir: SnapshotDir(a.cfg.DataDir),
		Header: a.snapshotHeader, Store: a.store, Logger: a.cfg.Logger,
	}
}

// Recover makes this server the only one of its cluster, with the state of a
// snapshot, or with its own when from is "". The server must not be running.
func Recover(ctx context.Context, cfg Config, from string) error {
	dir := filepath.Join(cfg.DataDir, "server")
	recovery := store.Recovery{
		Dir: filepath.Join(dir, "store"), Name: cfg.NodeName,
		Address: net.JoinHostPort(cfg.AdvertiseAddress.String(), fmt.Sprint(cfg.Port)),
	}
	source := "this server's files"
	if from != "" {
		snapshot, err := backup.Open(SnapshotDir(cfg.DataDir), from)
		if err != nil {
			return fmt.Errorf("--from: %w", err)
		}
		defer snapshot.Close()
		source = snapshot.Name
		recovery.From, recovery.Group = snapshot, snapshot.Group
		if !join.Joined(dir) { // a machine that was no server before
			if err := join.KeepFiles(dir, snapshot.Keys); err != nil {
				return fmt.Errorf("--from: %w", err)
			}
		}
	}
	old, err := store.Recover(ctx, recovery)
	if err != nil {
		return err
	}
	cfg.Logger.Info("cluster recovered: this is its only server now", "component", "server", "from", source, "before", old)
	return nil
}
