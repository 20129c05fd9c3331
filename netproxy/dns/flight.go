package dns

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// server is one name server of the machine.
type server struct {
	address string // host:port

	mu         sync.Mutex // guards what follows
	unanswered int        // queries in a row while it said nothing at all
	heard      time.Time  // when it last answered anything
	looped     time.Time  // when it last asked us what we had asked it
}

const (
	silentAfter = 3                // queries without a word: it is asked last
	loopPause   = 30 * time.Second // for a server that only asks us
)

func (s *server) silent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unanswered >= silentAfter
}

func (s *server) loops(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.looped.IsZero() && now.Sub(s.looped) < loopPause
}

// note counts what came of a query that was sent at a time. That one name has no
// answer says nothing of a server which answered others meanwhile.
func (s *server) note(sent time.Time, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case answered:
		s.heard, s.unanswered = time.Now(), 0
	case s.heard.Before(sent):
		s.unanswered++
	}
}

// flight is one question on its way, however many wait for the answer.
type flight struct {
	landed chan struct{} // closed once response is set
	// response is nil if nobody gave any.
	response *dns.Msg
}

// pace is the time after which a question is asked again, of the next server; it
// doubles. All answers count until the end.
const pace = 400 * time.Millisecond

// outcome is what came of asking one server once.
type outcome struct {
	from     *server
	response *dns.Msg
	err      error
}

// fly asks the servers until one answers, all have failed, or ctx ends: the first
// one at once, then the next whenever one fails or nothing is heard for a while,
// and around again.
func (u *upstream) fly(ctx context.Context, key cacheKey, servers []*server) *dns.Msg {
	ctx, land := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer land()
	outcomes := make(chan outcome)
	send := func(to *server) {
		query := newQuery(key)
		u.sent(query.Question[0], to)
		asking.Go(func() {
			defer u.unsent(query.Question[0])
			began := time.Now()
			response, err := ask(ctx, to.address, query)
			// Who was not given time to answer is not blamed.
			if err == nil || ctx.Err() == nil || time.Since(began) >= pace {
				to.note(began, err == nil)
			}
			select {
			case outcomes <- outcome{to, response, err}:
			case <-ctx.Done():
			}
		})
	}
	return u.await(ctx, servers, send, outcomes)
}

func (u *upstream) await(ctx context.Context, servers []*server, send func(*server), outcomes <-chan outcome) (failed *dns.Msg) {
	next, wait := 0, pace
	more := func() {
		if next < maxAttempts {
			send(servers[next%len(servers)])
			next++
		}
	}
	more()
	again := time.After(wait)
	refused := make(map[*server]bool) // each has a say only once
	for {
		select {
		case <-ctx.Done():
			return failed
		case <-again:
			more()
			wait *= 2
			again = time.After(wait)
		case o := <-outcomes:
			if o.err == nil && o.response.Rcode != dns.RcodeServerFailure && o.response.Rcode != dns.RcodeRefused && o.response.Rcode <= 0xf {
				return o.response
			}
			if o.err == nil {
				failed = o.response
			}
			if refused[o.from] = true; len(refused) == len(servers) {
				return failed
			}
			if next < len(servers) {
				more()
			}
		}
	}
}

// maxAttempts is how often a question is sent at most.
const maxAttempts = 8

// inOrder gives the servers to ask: those that say nothing last, those that only
// lead back here not at all.
func inOrder(servers []*server, now time.Time) []*server {
	var talking, silent []*server
	for _, s := range servers {
		switch {
		case s.loops(now):
		case s.silent():
			silent = append(silent, s)
		default:
			talking = append(talking, s)
		}
	}
	return slices.Concat(talking, silent)
}
