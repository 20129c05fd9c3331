package server

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/server/join"
)

// pathTokens is the endpoint of `orch token rotate`: POST of a RotateRequest.
const pathTokens = "/v1-orch/tokens/rotate"

func (a *assembly) serveTokens(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
		return
	}
	var request join.RotateRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&request); err != nil {
		http.Error(w, "the request is not the JSON of a rotation", http.StatusBadRequest)
		return
	}
	if err := request.Validate(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := a.tokens.Rotate(r.Context(), request)
	if err != nil {
		text := err.Error()
		if apierrors.IsTimeout(err) {
			text += " (" + join.InForce + ")"
		}
		http.Error(w, text, http.StatusServiceUnavailable)
		return
	}
	a.cfg.Logger.Info("join tokens rotated", "component", "server", "server", request.Server, "agent", request.Agent, "grace", request.Grace)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client went away
}

// agentToken is the token in force, as the file on this machine has it; known is
// from the start of the server.
func agentToken(dataDir, known string) string {
	data, err := os.ReadFile(filepath.Join(dataDir, "server", "agent-token"))
	if token := strings.TrimSpace(string(data)); err == nil && token != "" {
		return token
	}
	return known
}
