package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/server/fairness"
)

// seat is the place of a request among those that are worked on at once. It is
// given up whenever the request waits for its client, which may take as long as
// it likes: who does not read holds up nobody.
type seat struct {
	level *fairness.Level // nil: exempt from all limits
	flow  string
	count *gauges
	taken bool
}

// gauges count the requests of one kind: those that read, or those that write.
type gauges struct{ inflight, inqueue atomic.Int64 }

// take waits for a seat.
func (s *seat) take(ctx context.Context) error {
	if s.level != nil && !s.level.Try() {
		if err := s.wait(ctx, s.level.Acquire); err != nil {
			return err
		}
	}
	s.count.inflight.Add(1)
	s.taken = true
	return nil
}

// retake waits for a seat to go on with what was begun.
func (s *seat) retake(ctx context.Context) error {
	if s == nil || s.taken {
		return nil
	}
	if s.level != nil && !s.level.Try() {
		if err := s.wait(ctx, s.level.Resume); err != nil {
			return err
		}
	}
	s.count.inflight.Add(1)
	s.taken = true
	return nil
}

func (s *seat) wait(ctx context.Context, acquire func(context.Context, string) error) error {
	s.count.inqueue.Add(1)
	defer s.count.inqueue.Add(-1)
	err := acquire(ctx, s.flow)
	if errors.Is(err, fairness.ErrQueueFull) || errors.Is(err, fairness.ErrTimeOut) {
		return errTooMany()
	}
	return err
}

// leave gives the seat up, if it was taken.
func (s *seat) leave() {
	if s == nil || !s.taken {
		return
	}
	s.taken = false
	s.count.inflight.Add(-1)
	if s.level != nil {
		s.level.Release()
	}
}

// errTooMany asks the client to come again, in upstream's words.
func errTooMany() error {
	return apierrors.NewTooManyRequests("Too many requests, please try again later.", 1)
}

// What a request is taken to hold in memory besides its body, by estimate: its
// goroutine, its header and what is sent at once.
const (
	requestBytes  = 16 << 10
	watchBytes    = 32 << 10
	connectBytes  = 128 << 10 // a stream to a node, whose windows are larger
	strangerBytes = 128 << 10 // who shows no credentials may have sent as large a header
)

// hold counts n bytes as the request's; a request that may not hold them is
// refused.
func (q *request) hold(n int64) error {
	if q.seat.level == nil {
		return nil
	}
	if !q.seat.level.Hold(q.seat.flow, n) {
		return errTooMany()
	}
	q.held += n
	return nil
}

// release takes back what hold counted.
func (q *request) release(n int64) {
	if q.seat.level != nil {
		q.seat.level.Drop(q.seat.flow, n)
		q.held -= n
	}
}

func (q *request) drop() {
	if q.held > 0 {
		q.seat.level.Drop(q.seat.flow, q.held)
	}
}

// place chooses the priority level of the request and its flow there: its user,
// or where nobody is known its address.
func (s *Server) place(r *http.Request, q *request) {
	level := s.cfg.Levels.Of(fairness.Subject{
		User: q.user.Name, Groups: q.user.Groups, Group: q.group, Resource: q.resource, Health: !q.isResource && healthPath(q.path),
	})
	q.seat = seat{level: level, flow: q.user.Name, count: &s.reads}
	if level == s.cfg.Levels.Exempt {
		q.seat.level = nil
	}
	if q.user == anonymous || q.user.Name == anonymous.Name {
		q.seat.flow = host(r.RemoteAddr)
	}
	if q.writes() {
		q.seat.count = &s.writes
	}
}

// host is the address without its port.
func host(remote string) string {
	if h, _, err := net.SplitHostPort(remote); err == nil {
		return h
	}
	return remote
}

// strangerPatience is how long the answer to somebody unknown may take to be read.
const strangerPatience = 5 * time.Second

// turnAway answers who could not show who they are. Nothing of theirs is read
// any more, and one address has only so many such answers under way.
func (s *Server) turnAway(w http.ResponseWriter, r *http.Request) {
	level, flow := s.cfg.Levels.Everybody, host(r.RemoteAddr)
	if !level.Hold(flow, strangerBytes) {
		panic(http.ErrAbortHandler)
	}
	defer level.Drop(flow, strangerBytes)
	conn := http.NewResponseController(w)
	conn.SetWriteDeadline(time.Now().Add(strangerPatience)) // not all writers of tests can
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
		conn.SetReadDeadline(time.Now())
	}
	s.fail(w, r, apierrors.NewUnauthorized("Unauthorized"))
	conn.SetWriteDeadline(time.Time{})
}
