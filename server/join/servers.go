package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/internal/version"
)

// shared are the files under <data-dir>/server that all servers have alike. The
// last one is the sign that all have been written.
var shared = [...]string{
	"tls/ca.key", "tls/service-account.key", "tls/encryption.keys", "tls/servers/ca.key", "tls/servers/ca.crt",
	"token", "agent-token", "tls/ca.crt",
}

// settingsFile remembers the settings of the cluster that this server founded or
// joined.
const settingsFile = "cluster.json"

// Servers is the door at which further servers get what they need.
type Servers struct {
	Dir      string // <data-dir>/server
	Keys     *Keys
	Tokens   *Rotation
	Settings joining.Settings
}

// ServeHTTP answers POST /v1-orch/server/join.
func (s *Servers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
		return
	}
	if !s.Tokens.guesses.mayGuess(w, r, s.Tokens.Now()) {
		return
	}
	_, secret, _ := r.BasicAuth()
	user, err := s.Tokens.userOf(r.Context(), secret)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	switch user {
	case joining.UserServer:
	case joining.UserNode:
		http.Error(w, "this token is for agents: a server joins with the text of <data-dir>/server/token", http.StatusForbidden)
		return
	default:
		s.Tokens.guesses.guessed(r, s.Tokens.Now(), s.Tokens.Logger)
		http.Error(w, "the token's secret is wrong, or the token was rotated: take the token from <data-dir>/server/token of a server", http.StatusUnauthorized)
		return
	}
	var request joining.ServerRequest
	if err := decodeOnly(http.MaxBytesReader(w, r.Body, maxRequest), &request); err != nil {
		http.Error(w, "the request is not the JSON of a joining server", http.StatusBadRequest)
		return
	}
	if err := version.ServerSkew(version.Kubernetes, request.Version); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	files, err := s.files()
	if err != nil {
		slog.Error("a server cannot join", "component", "join", "server", request.Name, "error", err)
		http.Error(w, "the server cannot read its own keys", http.StatusInternalServerError)
		return
	}
	answer := joining.ServerAnswer{Files: files, Settings: s.Settings}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		slog.Debug("joining server went away", "component", "join", "server", request.Name, "error", err)
	}
}

// files are the shared ones, with the tokens in force: another server may have
// rotated them a moment ago.
func (s *Servers) files() (map[string][]byte, error) {
	files, err := SharedFiles(s.Dir)
	if err != nil {
		return nil, err
	}
	tokens, err := s.Tokens.Tokens()
	if err != nil {
		return nil, err
	}
	files["token"], files["agent-token"] = []byte(tokens.Server.String()+"\n"), []byte(tokens.Agent.String()+"\n")
	return files, nil
}

// SharedFiles reads what all servers have alike, by path under dir.
func SharedFiles(dir string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, name := range shared {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// KeepFiles writes them; the last one is the sign that all are there.
func KeepFiles(dir string, files map[string][]byte) error {
	for _, name := range shared {
		data := files[name]
		if len(data) == 0 {
			return fmt.Errorf("%s is missing: it may come from another version of orch", name)
		}
		if err := pki.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("keep the cluster's keys: %w", err)
		}
	}
	return nil
}

// Joined tells whether this server has the keys of a cluster already, its own
// or one that it joined.
func Joined(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, shared[len(shared)-1]))
	return err == nil
}

// Attempts to reach a server.
const (
	retryServer = 2 * time.Second  // between them
	joinReport  = 30 * time.Second // between lines about them
)

// Fetch gets the keys of the cluster from the server at address and leaves them
// in dir, unless fits refuses the cluster's settings. A server that cannot be
// reached yet is waited for.
func Fetch(ctx context.Context, dir, address, token string, request joining.ServerRequest, fits func(joining.Settings) error, log *slog.Logger) error {
	log.Info("joining the cluster", "component", "join", "server", address)
	start, reported := time.Now(), time.Time{}
	for attempt := 1; ; attempt++ {
		answer, err := joining.JoinServer(ctx, address, token, request)
		if err == nil {
			err = fits(answer.Settings)
			if err == nil {
				return keepFiles(dir, answer)
			}
		}
		if ctx.Err() != nil || !joining.Retry(err) {
			return fmt.Errorf("join %s: %w", address, err)
		}
		if now := time.Now(); now.Sub(reported) >= joinReport {
			reported = now
			log.Warn("waiting for the server", "component", "join", "server", address, "attempt", attempt, "waited", now.Sub(start).Round(time.Second), "error", err)
		}
		select {
		case <-time.After(retryServer):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func keepFiles(dir string, answer *joining.ServerAnswer) error {
	if err := writeSettings(dir, answer.Settings); err != nil {
		return err
	}
	return KeepFiles(dir, answer.Files)
}

func writeSettings(dir string, s joining.Settings) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = pki.WriteFile(filepath.Join(dir, settingsFile), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the cluster's settings: %w", err)
	}
	return nil
}

// KeepSettings writes the settings of a cluster that is founded, unless they are
// there.
func KeepSettings(dir string, s joining.Settings) error {
	if kept, err := Settings(dir); err != nil || kept != nil {
		return err
	}
	return writeSettings(dir, s)
}

// Settings gives those of the cluster that this server founded or joined; nil:
// neither has happened. Those of a joined one name its servers.
func Settings(dir string) (*joining.Settings, error) {
	data, err := os.ReadFile(filepath.Join(dir, settingsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	settings := &joining.Settings{}
	if err == nil {
		err = json.Unmarshal(data, settings)
	}
	if err != nil {
		return nil, fmt.Errorf("settings of the cluster: %w", err)
	}
	return settings, nil
}
