package server

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// gate holds requests back until the server can answer them, and counts those
// under way so that they can end before it stops.
type gate struct {
	opened chan struct{}

	mu      sync.Mutex
	inside  int           // guarded by mu
	drained chan struct{} // set when the gate has closed; closed when the last has left; guarded by mu
}

func newGate() *gate { return &gate{opened: make(chan struct{})} }

func (g *gate) open() { close(g.opened) }

// gateTime is how long a request waits for the server to come up.
const gateTime = 10 * time.Second

func (g *gate) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.enter(r) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "the server is not ready: it is starting, stopping, or waits for most of the other servers", http.StatusServiceUnavailable)
			return
		}
		defer g.leave()
		next.ServeHTTP(w, r)
	})
}

func (g *gate) enter(r *http.Request) bool {
	select {
	case <-g.opened:
	default:
		if !g.await(r) {
			return false
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drained != nil {
		return false
	}
	g.inside++
	return true
}

// await waits for the gate to open. Who asks for health wants to know now.
func (g *gate) await(r *http.Request) bool {
	switch r.URL.Path {
	case "/readyz", "/healthz", "/livez":
		return false
	}
	timer := time.NewTimer(gateTime)
	defer timer.Stop()
	select {
	case <-g.opened:
		return true
	case <-timer.C:
	case <-r.Context().Done():
	}
	return false
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.drained != nil {
		close(g.drained)
	}
}

// drain lets nobody in any more and waits, until ctx ends, for those inside.
func (g *gate) drain(ctx context.Context) {
	g.mu.Lock()
	g.drained = make(chan struct{})
	if g.inside == 0 {
		close(g.drained)
	}
	drained := g.drained
	g.mu.Unlock()
	select {
	case <-drained:
	case <-ctx.Done():
	}
}
