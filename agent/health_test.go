package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"orch/internal/pki"
)

// A server is left once nothing was answered for a while, and more patience is
// had with the next one.
func TestHealth(t *testing.T) {
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	var h health
	for _, step := range []struct {
		began, now int
		answered   bool
		leave      bool
	}{
		{began: 0, now: 0},
		{began: 1, now: 2},
		{now: 2, answered: true},
		{began: 4, now: 4},
		{began: 6, now: 6},
		{began: 7, now: 8, leave: true},
		{began: 7, now: 9}, // of the server before
		{began: 9, now: 9},
		{began: 12, now: 13},
		{began: 14, now: 15, leave: true},
		{began: 16, now: 17},
		{now: 18, answered: true},
		{began: 20, now: 24, leave: true}, // it hangs
	} {
		if step.answered {
			h.answered()
			continue
		}
		if leave := h.failed(at(step.began), at(step.now)); leave != step.leave {
			t.Errorf("after a failure from %d to %d: leave %v", step.began, step.now, leave)
		}
	}
}

// answering starts a server that answers with the status it is told, and counts.
func answering(t *testing.T, ca *pki.Authority, status *atomic.Int32) (address string, requests *atomic.Int32) {
	t.Helper()
	pair, err := ca.Issue(pki.ServingProfile(nil, net.IPv4(127, 0, 0, 1), "cluster.local"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	requests = new(atomic.Int32)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Query().Has("watch") {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		if r.URL.Query().Has("resourceVersion") {
			return // old state is to be had
		}
		w.WriteHeader(int(status.Load()))
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), requests
}

// A server that answers nothing but 503, as one without a majority does, is left
// for the next, with its watches.
func TestLeaveServer(t *testing.T) {
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var bad, good atomic.Int32
	bad.Store(http.StatusOK)
	good.Store(http.StatusOK)
	first, _ := answering(t, ca, &bad)
	second, requests := answering(t, ca, &good)
	s := newServers(first, filepath.Join(t.TempDir(), "servers.json"))
	if err := s.learn([]string{first, second}); err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: ca.Pool(), ServerName: "kubernetes"}
	client := &http.Client{Transport: observed{&http.Transport{ForceAttemptHTTP2: true, DialTLSContext: s.dialTLS(config)}, s, slog.New(slog.DiscardHandler)}}
	defer client.CloseIdleConnections()
	request := func(query string) *http.Request {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://ignored/"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		return request
	}
	ask := func(query string) *http.Response {
		t.Helper()
		response, err := client.Do(request(query))
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	ask("").Body.Close()
	watch := ask("?watch=1")
	defer watch.Body.Close()
	if requests.Load() > 0 {
		t.Fatal("the second server was asked while the first one worked")
	}
	bad.Store(http.StatusServiceUnavailable)
	for began := time.Now(); requests.Load() == 0; <-time.After(50 * time.Millisecond) {
		for _, query := range []string{"", "?resourceVersion=0"} {
			// One may still be sent on the connection that is being closed.
			if response, err := client.Do(request(query)); err == nil {
				response.Body.Close()
			}
		}
		if time.Since(began) > time.Minute {
			t.Fatal("the agent stays with a server that does nothing")
		}
	}
	if _, err := watch.Body.Read(make([]byte, 1)); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the watch goes on: %v", err)
	}
	response := ask("")
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || s.candidates()[0] != second {
		t.Errorf("%s, first is %s", response.Status, s.candidates()[0])
	}
}
