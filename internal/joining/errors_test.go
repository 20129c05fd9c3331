package joining

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func join(t *testing.T, server string, token Token) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := Join(ctx, Config{Server: server, Token: token.String(), NodeName: "a", Dir: t.TempDir()})
	return err
}

func TestClock(t *testing.T) {
	for _, off := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		there := time.Now().Add(off)
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", there.UTC().Format(http.TimeFormat))
		}))
		err := join(t, server.URL, Token{Secret: "sesame"})
		var clock *ClockError
		if !errors.As(err, &clock) || Retry(err) || !strings.Contains(err.Error(), there.UTC().Format(time.RFC3339)) ||
			!strings.Contains(err.Error(), time.Now().UTC().Format("2006-01-02T15:")) {
			t.Errorf("clock off by %s: %v", off, err)
		}
		server.Close()
	}
	if err := checkClock(&url.URL{}, "yesterday", time.Now()); err != nil {
		t.Errorf("without a date: %v", err)
	}
}

func TestRetry(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	starting := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "starting", http.StatusServiceUnavailable)
	}))
	defer starting.Close()
	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // nobody listens there now
	token := Token{Secret: "sesame"}
	for _, tt := range []struct {
		name, want string
		err        error
		retry      bool
	}{
		{"nobody listens", "connection refused", join(t, "https://"+listener.Addr().String(), token), true},
		{"no TLS", "does not speak TLS", join(t, "https://"+plain.Listener.Addr().String(), token), false},
		{"starting", "503", join(t, starting.URL, token), true},
		{"no orch", "is it an orch server?", join(t, other.URL, token), false},
		{"cut off", "EOF", fmt.Errorf("post: %w", &url.Error{Op: "Post", Err: io.EOF}), true},
		{"wrong token", "refuses", &RefusedError{Status: http.StatusUnauthorized}, false},
		{"asked too often", "refuses", &RefusedError{Status: http.StatusTooManyRequests}, true},
	} {
		if Retry(tt.err) != tt.retry || !strings.Contains(fmt.Sprint(tt.err), tt.want) {
			t.Errorf("%s: retry %v after %v", tt.name, Retry(tt.err), tt.err)
		}
	}
	if !NameTaken(&RefusedError{Status: http.StatusConflict}) || NameTaken(&RefusedError{Status: http.StatusUnauthorized}) {
		t.Error("a name that is taken is not told from other refusals")
	}
}
