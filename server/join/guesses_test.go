package join

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"orch/internal/joining"
)

// Who sends wrong tokens is slowed down, whichever door they try; others are not.
func TestGuessesAreSlowed(t *testing.T) {
	var log strings.Builder
	now := time.Now()
	s := newTestServer(t)
	tokens := &Rotation{Dir: s.dir, Keys: s.keys, Registry: s.registry, Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	agents := (&Agents{Keys: s.keys, Tokens: tokens, Registry: s.registry, Now: tokens.Now}).Handler()
	servers := &Servers{Dir: s.dir, Keys: s.keys, Tokens: tokens}
	try := func(from string, handler http.Handler, path, secret string) int {
		r := httptest.NewRequest("POST", path, strings.NewReader(`{"nodeName":"n","csr":"x"}`))
		r.RemoteAddr = from
		r.SetBasicAuth("node", secret)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
	codes := map[int]int{}
	for i := range 1500 {
		if i%2 == 0 {
			codes[try("192.0.2.1:1", agents, joining.PathAgent, "wrong")]++
		} else {
			codes[try("192.0.2.1:2", servers, joining.PathServer, "wrong")]++
		}
	}
	if codes[http.StatusUnauthorized] != guessesAtOnce || codes[http.StatusTooManyRequests] != 1500-guessesAtOnce {
		t.Errorf("answers: %v", codes)
	}
	if code := try("192.0.2.1:1", servers, joining.PathServer, s.keys.Tokens.Server.Secret); code != http.StatusTooManyRequests {
		t.Errorf("a guess that is right tells so: %d", code)
	}
	if code := try("192.0.2.2:1", servers, joining.PathServer, s.keys.Tokens.Server.Secret); code == http.StatusTooManyRequests {
		t.Error("another address is slowed")
	}
	now = now.Add(guessEvery)
	if code := try("192.0.2.1:1", servers, joining.PathServer, "wrong"); code != http.StatusUnauthorized {
		t.Errorf("after a while: %d", code)
	}
	if lines := strings.Count(log.String(), "wrong join tokens"); lines != 1 {
		t.Errorf("%d lines in the log:\n%s", lines, &log)
	}
}

// However many addresses guess, few are remembered.
func TestGuessersAreBounded(t *testing.T) {
	var g guesses
	now := time.Now()
	for i := range 3 * guessers {
		r := httptest.NewRequest("POST", "/", nil)
		r.RemoteAddr = fmt.Sprintf("[2001:db8:%x::1]:1", i)
		g.guessed(r, now, slog.New(slog.DiscardHandler))
	}
	if n := len(g.addresses); n > guessers+1 {
		t.Errorf("%d are remembered", n)
	}
	now = now.Add(time.Hour)
	r := httptest.NewRequest("POST", "/", nil)
	r.RemoteAddr = "192.0.2.1:1"
	g.guessed(r, now, slog.New(slog.DiscardHandler))
	if n := len(g.addresses); n > 2 {
		t.Errorf("%d are remembered when all have waited", n)
	}
}
