package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"orch/internal/version"
	"orch/server/backup"
	"orch/server/join"
)

// SnapshotDir is where a server keeps snapshots.
func SnapshotDir(dataDir string) string { return filepath.Join(dataDir, "server", "snapshots") }

// pathSnapshots is the endpoint of `orch snapshot save`: POST with ?name=.
const pathSnapshots = "/v1-orch/snapshots"

// SnapshotAnswer is a line of the answer to it: any number of them with Done and
// Total, then one with Info or Error, or both when the upload has failed.
type SnapshotAnswer struct {
	Done  int64        `json:"done,omitempty"` // bytes
	Total int64        `json:"total,omitempty"`
	Info  *backup.Info `json:"info,omitempty"`
	Error string       `json:"error,omitempty"`
	// Behind says why what this server has may lack the newest writes.
	Behind string `json:"behind,omitempty"`
}

func (a *assembly) serveSnapshots(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "snapshot-" + time.Now().UTC().Format("20060102-150405")
	}
	lines := json.NewEncoder(w)
	conn := http.NewResponseController(w)
	_ = conn.SetWriteDeadline(time.Time{}) // a snapshot takes as long as it takes
	answer := func(line SnapshotAnswer) {
		_ = conn.SetWriteDeadline(time.Now().Add(answerTime))
		_ = lines.Encode(line) // the client went away
		_ = conn.Flush()
		_ = conn.SetWriteDeadline(time.Time{})
	}
	last := SnapshotAnswer{Behind: a.catchUp(r.Context())}
	said := false
	info, err := a.snapshots.Save(r.Context(), name, paced(answerEvery, func(done, total int64) {
		said = true
		answer(SnapshotAnswer{Done: done, Total: total})
	}))
	var upload *backup.UploadError
	switch {
	case err == nil || errors.As(err, &upload):
		last.Info = &info
	case said: // the status is on its way already
	case errors.Is(err, backup.ErrExists):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case errors.Is(err, backup.ErrBadName):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err != nil {
		last.Error = err.Error()
	}
	answer(last)
}

// catchUpTime is how long a snapshot waits for what other servers know.
const catchUpTime = 5 * time.Second

// catchUp brings this server up to date with the leader, so that a snapshot has
// all that was acknowledged before it. Without most servers there is no telling;
// a snapshot of what is here is then better than none.
func (a *assembly) catchUp(ctx context.Context) (behind string) {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	if _, err := a.store.Sync(ctx); err != nil {
		return err.Error()
	}
	return ""
}

// answerTime is how long a client may take to read a line of progress.
const answerTime = 10 * time.Second

// Pauses between tidings of progress.
const (
	answerEvery = 500 * time.Millisecond
	logEvery    = 5 * time.Second
)

// paced passes progress on from time to time.
func paced(every time.Duration, tell backup.Progress) backup.Progress {
	var mu sync.Mutex
	last := time.Now()
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) >= every {
			last = now
			tell(done, total)
		}
	}
}

// logProgress writes lines about what takes long.
func logProgress(logger *slog.Logger, what string) backup.Progress {
	return paced(logEvery, func(done, total int64) {
		logger.Info(what, "component", "server", "bytes", done, "of", total)
	})
}

func (a *assembly) snapshotHeader(name string) (backup.Header, error) {
	keys, err := join.SharedFiles(filepath.Join(a.cfg.DataDir, "server"))
	settings := a.agents.Settings
	settings.Servers = nil
	return backup.Header{
		Name: name, Created: time.Now().UTC(), Server: a.cfg.NodeName, Version: version.Orch, Keys: keys, Settings: &settings,
	}, err
}

func (a *assembly) assembleSnapshots() error {
	k := backup.Config{
		Dir: SnapshotDir(a.cfg.DataDir), Server: a.cfg.NodeName, Header: a.snapshotHeader, Store: a.store,
		Interval: a.cfg.SnapshotInterval, Retain: a.cfg.SnapshotRetention, Logger: a.cfg.Logger, Report: a.snapshotReport(),
	}
	if a.cfg.SnapshotS3.Used() {
		bucket, err := backup.NewBucket(a.cfg.SnapshotS3)
		if err != nil {
			return err
		}
		k.Bucket = bucket
	}
	a.snapshots = backup.NewKeeper(k)
	return nil
}
