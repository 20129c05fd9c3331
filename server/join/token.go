package join

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"orch/internal/joining"
	"orch/internal/pki"
)

// Tokens let servers and agents join.
type Tokens struct {
	Server, Agent joining.Token
}

// loadTokens takes the secrets from the flags, else from the files of an
// earlier start, else makes them, and leaves the whole tokens in the files.
func loadTokens(cfg Config, caHash string) (Tokens, error) {
	server, err := loadToken(filepath.Join(cfg.Dir, "token"), "--token", cfg.Token, joining.UserServer, caHash)
	if err != nil {
		return Tokens{}, err
	}
	agent, err := loadToken(filepath.Join(cfg.Dir, "agent-token"), "--agent-token", cfg.AgentToken, joining.UserNode, caHash)
	if err != nil {
		return Tokens{}, err
	}
	return Tokens{Server: server, Agent: agent}, nil
}

func loadToken(file, flag, given, user, caHash string) (joining.Token, error) {
	stored, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return joining.Token{}, fmt.Errorf("read token: %w", err)
	}
	source, text := flag, given
	if given == "" && len(stored) > 0 {
		source, text = file, strings.TrimSpace(string(stored))
	}
	t := joining.Token{Secret: newSecret()}
	if text != "" {
		if t, err = joining.ParseToken(text); err != nil {
			return joining.Token{}, fmt.Errorf("%s: %w", source, err)
		}
	}
	if err := ofCA(t, caHash); err != nil {
		return joining.Token{}, fmt.Errorf("%s: %w", source, err)
	}
	if t.User != "" && t.User != user {
		return joining.Token{}, fmt.Errorf("%s: the token is for user %q, not %q", source, t.User, user)
	}
	t.CAHash, t.User = caHash, user
	if line := t.String() + "\n"; line != string(stored) {
		if err := pki.WriteFile(file, []byte(line), 0o600); err != nil {
			return joining.Token{}, fmt.Errorf("write token: %w", err)
		}
	}
	return t, nil
}

// OfCluster checks that a whole token was made for the cluster whose keys are in dir.
func OfCluster(dir string, t joining.Token) error {
	if t.CAHash == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(dir, shared[len(shared)-1]))
	if err != nil {
		return err
	}
	ca, err := pki.ParseCertificate(data)
	if err != nil {
		return err
	}
	return ofCA(t, pki.HashOf(ca))
}

func ofCA(t joining.Token, caHash string) error {
	if t.CAHash != "" && t.CAHash != caHash {
		return fmt.Errorf("the token belongs to another cluster: it was made for the CA %s, this one is %s", t.CAHash, caHash)
	}
	return nil
}

func newSecret() string {
	secret := make([]byte, 16)
	rand.Read(secret) // never fails
	return hex.EncodeToString(secret)
}

// userOf gives the user whose secret this is, "" when nobody's. The server's
// secret also admits agents.
func (t Tokens) userOf(secret string) string {
	same := func(token joining.Token) bool {
		return subtle.ConstantTimeCompare([]byte(token.Secret), []byte(secret)) == 1
	}
	switch {
	case same(t.Server):
		return joining.UserServer
	case same(t.Agent):
		return joining.UserNode
	}
	return ""
}
