package join

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/joining"
	"orch/server/registry"
)

func rotation(s *testServer) *Rotation {
	return &Rotation{Dir: s.dir, Keys: s.keys, Registry: s.registry, Now: time.Now, Logger: slog.Default()}
}

func whose(t *testing.T, o *Rotation, token joining.Token) string {
	t.Helper()
	user, err := o.userOf(t.Context(), token.Secret)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func TestRotate(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	now := time.Now()
	here, there := rotation(s), rotation(s) // two servers
	here.Now, there.Now = func() time.Time { return now }, func() time.Time { return now }
	first := s.keys.Tokens
	if user := whose(t, here, first.Agent); user != joining.UserNode {
		t.Errorf("before any rotation the agents' token is of %q", user)
	}
	answer, err := here.Rotate(t.Context(), RotateRequest{Agent: true, Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	second, err := there.Tokens()
	if err != nil || second.Server != first.Server || second.Agent == first.Agent || answer.Agent != second.Agent.String() {
		t.Errorf("tokens %v after %v: %v, told %v", second, first, err, answer)
	}
	for _, o := range []*Rotation{here, there} {
		if whose(t, o, second.Agent) != joining.UserNode || whose(t, o, first.Agent) != joining.UserNode || whose(t, o, first.Server) != joining.UserServer {
			t.Error("new, old and other token are not all good")
		}
	}
	now = now.Add(time.Hour)
	if user := whose(t, there, first.Agent); user != "" {
		t.Errorf("after its grace the old token is still of %q", user)
	}
	if _, err := there.Rotate(t.Context(), RotateRequest{Server: true, Agent: true, ServerSecret: "sesame"}); err != nil {
		t.Fatal(err)
	}
	if whose(t, here, first.Server) != "" || whose(t, here, second.Agent) != "" {
		t.Error("tokens without grace are still good")
	}
	third, err := here.Tokens()
	if err != nil || third.Server.Secret != "sesame" || whose(t, here, third.Server) != joining.UserServer {
		t.Errorf("the token that was given: %v (%v)", third.Server, err)
	}
	if data, err := os.ReadFile(filepath.Join(s.dir, "agent-token")); err != nil || strings.TrimSpace(string(data)) != third.Agent.String() {
		t.Errorf("file of the agents' token: %s, %v", data, err)
	}
	// Whoever reads Secrets does not become a server by it.
	secret, err := registry.Of[*corev1.Secret](s.registry).Get(metav1.NamespaceSystem, rotationName)
	if err != nil || strings.Contains(string(secret.Data[rotationKey]), "sesame") {
		t.Errorf("the Secret shows the token (%v)", err)
	}
	for _, bad := range []RotateRequest{{}, {Agent: true, Grace: -1}, {Agent: true, AgentSecret: "two words"}, {Server: true, Agent: true, ServerSecret: "a", AgentSecret: "a"}} {
		if _, err := here.Rotate(t.Context(), bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// Tokens in force are told even when they cannot be written down: the old ones
// are void.
func TestRotateWithoutFiles(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	file := filepath.Join(s.dir, "agent-token")
	if err := errors.Join(os.Remove(file), os.MkdirAll(filepath.Join(file, "in", "the", "way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	o := rotation(s)
	answer, err := o.Rotate(t.Context(), RotateRequest{Agent: true})
	if err != nil || !strings.Contains(answer.Warning, file) {
		t.Fatalf("%+v, %v", answer, err)
	}
	told, err := joining.ParseToken(answer.Agent)
	if err != nil || whose(t, o, told) != joining.UserNode || whose(t, o, s.keys.Tokens.Agent) != "" {
		t.Errorf("the token that was told is not the one in force (%v)", err)
	}
}

// A server that is cut off from the others cannot know whether a token is void.
func TestRotationNeedsTheOthers(t *testing.T) {
	s := newTestServer(t)
	o := rotation(s)
	o.Sync = func(context.Context) error { return errors.New("no leader") }
	agents := &Agents{Keys: s.keys, Tokens: o, Registry: s.registry, Now: time.Now}
	request, _ := http.NewRequest(http.MethodPost, "/", nil)
	request.SetBasicAuth(joining.UserNode, s.keys.Tokens.Agent.Secret)
	if reason, status := agents.mayJoin(request, "a"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d: %s", status, reason)
	}
}

func TestAgentOfAnotherVersion(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	body := strings.NewReader(`{"nodeName":"a","version":"v1.99.0"}`)
	request := httptest.NewRequest(http.MethodPost, joining.PathAgent, body)
	request.SetBasicAuth(joining.UserNode, s.keys.Tokens.Agent.Secret)
	answer := httptest.NewRecorder()
	(&Agents{Keys: s.keys, Tokens: rotation(s), Registry: s.registry, Now: time.Now}).join(answer, request)
	if text := answer.Body.String(); answer.Code != http.StatusForbidden || !strings.Contains(text, "upgrade the servers first") {
		t.Errorf("status %d: %s", answer.Code, text)
	}
}
