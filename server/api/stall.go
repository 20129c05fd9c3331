package api

import (
	"net/http"
	"sync"
	"time"
)

// stallTime is how long the client of a stream may take to read what is sent at
// once (up to 64 KiB).
const stallTime = 30 * time.Second

// stall ends a stream whose client does not read. A deadline set for each write
// would cost a message to the HTTP/2 connection's loop each; a timer that hardly
// ever fires costs next to nothing.
type stall struct {
	conn     *http.ResponseController
	patience time.Duration

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	since time.Time // of the write under way; zero: there is none
}

// begin notes that a write begins.
func (s *stall) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Now()
	if s.timer == nil {
		s.timer = time.AfterFunc(s.patience, s.expire)
	} else {
		s.timer.Reset(s.patience)
	}
}

func (s *stall) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Time{}
	s.timer.Stop()
}

// expire makes the write under way fail. The lock keeps the handler from
// returning meanwhile, after which its writer must not be touched.
func (s *stall) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.since.IsZero() && time.Since(s.since) >= s.patience {
		s.conn.SetWriteDeadline(time.Now().Add(-time.Second))
	}
}
