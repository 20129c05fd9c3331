package join

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/registry"
)

// The tokens in force after a rotation are in a Secret, under the key at rest
// that servers alone have: who may read Secrets through the API does not learn
// from it how to become a server.
const (
	rotationName                   = auth.SecretJoinTokens
	rotationKey                    = "sealed"
	rotationType corev1.SecretType = "orch.io/join-tokens"
)

// Rotation tells which join tokens are in force. As long as none was rotated
// these are the ones in this server's files, or of its flags; afterwards the
// cluster's word counts, on every server alike.
type Rotation struct {
	Dir      string // <data-dir>/server
	Keys     *Keys
	Registry *registry.Registry
	// Sync waits until this server has seen all writes that were acknowledged
	// anywhere, so that no server takes a token that another has made void. Nil:
	// there is one server.
	Sync   func(context.Context) error
	Now    func() time.Time
	Logger *slog.Logger

	guesses guesses
}

// ring is what the Secret holds.
type ring struct {
	Server, Agent string // secrets
	Old           []oldSecret
}

// oldSecret is accepted a while longer.
type oldSecret struct {
	User, Secret string
	Until        time.Time
}

// current gives the cluster's word; nil: nothing was rotated.
func (o *Rotation) current() (*ring, error) {
	secret, err := registry.Of[*corev1.Secret](o.Registry).Get(metav1.NamespaceSystem, rotationName)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the join tokens: %w", err)
	}
	return o.open(secret)
}

func (o *Rotation) open(secret *corev1.Secret) (*ring, error) {
	plain, err := o.Keys.AtRest.Decrypt(rotationName, secret.Data[rotationKey])
	r := &ring{}
	if err == nil {
		err = json.Unmarshal(plain, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read the join tokens: %w", err)
	}
	return r, nil
}

// Tokens gives those in force, as far as this server knows.
func (o *Rotation) Tokens() (Tokens, error) {
	r, err := o.current()
	if r == nil || err != nil {
		return o.Keys.Tokens, err
	}
	return o.tokens(r), nil
}

func (o *Rotation) tokens(r *ring) Tokens {
	t := o.Keys.Tokens
	t.Server.Secret, t.Agent.Secret = r.Server, r.Agent
	return t
}

// userOf gives the user whose secret this is, "" when nobody's.
func (o *Rotation) userOf(ctx context.Context, secret string) (string, error) {
	if o.Sync != nil {
		if err := o.Sync(ctx); err != nil {
			return "", fmt.Errorf("most of the servers cannot be reached: %w", err)
		}
	}
	r, err := o.current()
	if err != nil {
		return "", err
	}
	if r == nil {
		return o.Keys.Tokens.userOf(secret), nil
	}
	user := o.tokens(r).userOf(secret)
	for _, old := range r.Old {
		if user == "" && o.Now().Before(old.Until) && subtle.ConstantTimeCompare([]byte(old.Secret), []byte(secret)) == 1 {
			user = old.User
		}
	}
	return user, nil
}

// RotateRequest says which tokens are replaced, and by what; an empty secret
// that is asked for is made.
type RotateRequest struct {
	Server       bool          `json:"server,omitempty"`
	Agent        bool          `json:"agent,omitempty"`
	ServerSecret string        `json:"serverSecret,omitempty"`
	AgentSecret  string        `json:"agentSecret,omitempty"`
	Grace        time.Duration `json:"grace,omitempty"` // how long the old ones are still good
}

// RotateAnswer has the tokens in force from now on.
type RotateAnswer struct {
	Server string `json:"server"`
	Agent  string `json:"agent"`
	// Warning says why this server's files do not have them.
	Warning string `json:"warning,omitempty"`
}

// InForce tells where to look when the outcome of a rotation is not known.
const InForce = "whether the tokens were replaced is not known: those in force are in <data-dir>/server/token and agent-token of any server that is ready; rotate them again if they are the old ones"

// Rotate replaces tokens. When it returns, no server takes the old ones for
// longer than their grace. After a Timeout error they may have been replaced.
func (o *Rotation) Rotate(ctx context.Context, request RotateRequest) (*RotateAnswer, error) {
	if err := request.Validate(); err != nil {
		return nil, err
	}
	secrets := registry.Of[*corev1.Secret](o.Registry)
	first, err := o.seal(&ring{Server: o.Keys.Tokens.Server.Secret, Agent: o.Keys.Tokens.Agent.Secret})
	if err != nil {
		return nil, err
	}
	_, err = secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: rotationName},
		Type:       rotationType, Data: first,
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("keep the join tokens: %w", err)
	}
	var next *ring
	_, err = secrets.Mutate(ctx, metav1.NamespaceSystem, rotationName, func(s *corev1.Secret) error {
		last, err := o.open(s)
		if err != nil {
			return err
		}
		next = last.next(request, o.Now())
		s.Data, err = o.seal(next)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("keep the join tokens: %w", err)
	}
	t := o.tokens(next)
	answer := &RotateAnswer{Server: t.Server.String(), Agent: t.Agent.String()}
	if err := o.keep(t); err != nil { // they are in force all the same, and must be told
		answer.Warning = fmt.Sprintf("%v: until this server starts again its files have the old tokens", err)
	}
	return answer, nil
}

// Validate checks a request of a client.
func (r RotateRequest) Validate() error {
	if !r.Server && !r.Agent {
		return errors.New("nothing to rotate: ask for the server's token, the agents', or both")
	}
	if r.Grace < 0 {
		return fmt.Errorf("grace %s: must not be negative", r.Grace)
	}
	for _, secret := range []string{r.ServerSecret, r.AgentSecret} {
		if secret == "" {
			continue
		}
		if t, err := joining.ParseToken(secret); err != nil || t.CAHash != "" {
			return errors.New("a new token must be a bare secret, without spaces and \"::\"")
		}
	}
	if r.ServerSecret != "" && r.ServerSecret == r.AgentSecret {
		return errors.New("servers and agents must not share a token")
	}
	return nil
}

// next is the ring after the request; old secrets that are over go.
func (r *ring) next(request RotateRequest, now time.Time) *ring {
	next := &ring{Server: r.Server, Agent: r.Agent}
	next.Old = slices.DeleteFunc(slices.Clone(r.Old), func(o oldSecret) bool { return !now.Before(o.Until) })
	replace := func(secret *string, user, by string) {
		if request.Grace > 0 {
			next.Old = append(next.Old, oldSecret{user, *secret, now.Add(request.Grace)})
		}
		if *secret = by; by == "" {
			*secret = newSecret()
		}
	}
	if request.Server {
		replace(&next.Server, joining.UserServer, request.ServerSecret)
	}
	if request.Agent {
		replace(&next.Agent, joining.UserNode, request.AgentSecret)
	}
	return next
}

func (o *Rotation) seal(r *ring) (map[string][]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sealed, err := o.Keys.AtRest.Encrypt(rotationName, plain)
	if err != nil {
		return nil, fmt.Errorf("seal the join tokens: %w", err)
	}
	return map[string][]byte{rotationKey: sealed}, nil
}

// keep writes the tokens to the files where people look for them.
func (o *Rotation) keep(t Tokens) error {
	for name, token := range map[string]joining.Token{"token": t.Server, "agent-token": t.Agent} {
		file, line := filepath.Join(o.Dir, name), []byte(token.String()+"\n")
		if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, line) {
			continue
		}
		if err := pki.WriteFile(file, line, 0o600); err != nil {
			return fmt.Errorf("write token: %w", err)
		}
	}
	return nil
}

// CatchUp brings the files up to date, before anybody on this machine reads them.
func (o *Rotation) CatchUp() error {
	r, err := o.current()
	if r == nil || err != nil {
		return err
	}
	if o.tokens(r) != o.Keys.Tokens {
		o.Logger.Warn("the join tokens were rotated: what this server was started with is void; the tokens in force are in its files",
			"component", "join", "dir", o.Dir)
	}
	return o.keep(o.tokens(r))
}

// Run keeps this server's files the same as the cluster's word, until ctx ends.
func (o *Rotation) Run(ctx context.Context) error {
	return registry.Of[*corev1.Secret](o.Registry).Watch(ctx, func(_, s *corev1.Secret, deleted bool) {
		if deleted || s.Namespace != metav1.NamespaceSystem || s.Name != rotationName {
			return
		}
		r, err := o.open(s)
		if err == nil {
			err = o.keep(o.tokens(r))
		}
		if err != nil {
			o.Logger.Error("the files with the join tokens are out of date", "component", "join", "error", err)
		}
	}, func() {})
}
