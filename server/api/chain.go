package api

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/fairness"
)

// ServeHTTP takes a request through the chain: identity, limits, permission,
// then the handler that the path names.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, private")
	id := r.Header.Get("Audit-Id")
	if id == "" {
		id = uuid.NewString()
	}
	h.Set("Audit-Id", id)
	defer s.recoverPanic(w, r)
	q, err := parseRequest(r.Method, r.URL)
	if err != nil {
		s.fail(w, r, apierrors.NewBadRequest(err.Error()+", "+r.URL.String()))
		return
	}
	done := s.metrics.begin(q)
	answer := &answerWriter{ResponseWriter: w, code: http.StatusOK}
	defer func() { done(answer.code) }()
	s.identify(answer, r, q)
}

// recoverPanic answers 500 for a broken handler and keeps the server alive.
func (s *Server) recoverPanic(w http.ResponseWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if cause == http.ErrAbortHandler {
		panic(cause)
	}
	s.log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
	s.fail(w, r, &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
		Message: "This request caused apiserver to panic. Look in the logs for details.",
	}})
}

// identify finds the user, follows impersonation and asks the authorizer.
func (s *Server) identify(w http.ResponseWriter, r *http.Request, q *request) {
	q.user = anonymous
	var proof *http.Request
	if q.longRunning() {
		proof = proofOf(r)
	}
	if s.cfg.Authenticator != nil {
		user, err := s.authenticate(r)
		if errors.Is(err, fairness.ErrQueueFull) || errors.Is(err, fairness.ErrTimeOut) {
			s.fail(w, r, errTooMany())
			return
		}
		if err != nil {
			s.turnAway(w, r)
			return
		}
		if user != nil {
			q.user = user
		}
	}
	r.Header.Del("Authorization")
	if proof != nil && q.user != anonymous {
		ctx, done := s.lasting.add(r.Context(), q.user, proof)
		defer done()
		r = r.WithContext(ctx)
	}
	if err := s.impersonate(r, q); err != nil {
		s.fail(w, r, err)
		return
	}
	if err := s.authorize(r.Context(), q.attributes()); err != nil {
		if q.user == anonymous {
			s.turnAway(w, r)
			return
		}
		s.fail(w, r, err)
		return
	}
	s.admit(w, r.WithContext(auth.WithUser(r.Context(), q.user)), q)
}

// authenticate checks who asks. Signatures of tokens take long to check, so few
// are at once, and addresses take turns.
func (s *Server) authenticate(r *http.Request) (*auth.User, error) {
	if r.Header.Get("Authorization") != "" || r.Header.Get("Sec-Websocket-Protocol") != "" {
		if err := s.verifying.Acquire(r.Context(), host(r.RemoteAddr)); err != nil {
			return nil, err
		}
		defer s.verifying.Release()
	}
	return s.cfg.Authenticator.Authenticate(r)
}

// anonymous is who shows no credentials. The authorizer lets it see health and
// version; anything else is answered 401 and not 403, since logging in may help.
var anonymous = &auth.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}

func (s *Server) authorize(ctx context.Context, a *auth.Attributes) error {
	if s.cfg.Authorizer == nil {
		return nil
	}
	allowed, reason, err := s.cfg.Authorizer.Authorize(ctx, a)
	if allowed {
		return nil
	}
	if err != nil && reason == "" {
		return apierrors.NewInternalError(err)
	}
	return forbidden(a, reason)
}

// admit bounds the requests in flight, their time and what they hold. Those
// beyond the bound wait.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, q *request) {
	s.place(r, q)
	defer q.drop()
	if q.longRunning() {
		s.admitStream(w, r, q)
		return
	}
	timeout, err := s.timeout(q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	r = r.WithContext(ctx)
	err = q.hold(requestBytes)
	if err == nil && q.writes() {
		err = readAhead(w, r, q)
	}
	if err == nil {
		err = q.sit(ctx, w)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer q.seat.leave()
	s.route(w, r, q)
}

// admitStream lets a request in that lasts. A watch needs a seat until it sends.
func (s *Server) admitStream(w http.ResponseWriter, r *http.Request, q *request) {
	held := int64(watchBytes)
	if q.verb != "watch" {
		held = connectBytes
	}
	err := q.hold(held)
	if err == nil && q.verb == "watch" {
		err = q.sit(r.Context(), w)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer q.seat.leave()
	conn := http.NewResponseController(w)
	conn.SetReadDeadline(time.Time{})
	conn.SetWriteDeadline(time.Time{})
	if answer, ok := w.(*answerWriter); ok {
		answer.stall = &stall{conn: http.NewResponseController(answer.ResponseWriter), patience: s.cfg.StallTime}
	}
	s.route(w, r, q)
}

// sit takes a seat, which w gives up as soon as it writes.
func (q *request) sit(ctx context.Context, w http.ResponseWriter) error {
	if err := q.seat.take(ctx); err != nil {
		return err
	}
	if answer, ok := w.(*answerWriter); ok {
		answer.seat = &q.seat
	}
	return nil
}

// timeout is the configured one, or a shorter one that the client asks for.
func (s *Server) timeout(q *request) (time.Duration, error) {
	asked := q.query.Get("timeout")
	if asked == "" {
		return s.cfg.RequestTimeout, nil
	}
	d, err := time.ParseDuration(asked)
	if err != nil {
		return 0, apierrors.NewBadRequest("invalid timeout specified in the request URL - " + err.Error())
	}
	if d <= 0 || d > s.cfg.RequestTimeout {
		d = s.cfg.RequestTimeout
	}
	return d, nil
}

// answerWriter remembers the status code for the metrics. Whenever it may have to
// wait for the client, the request's seat is given up.
type answerWriter struct {
	http.ResponseWriter
	code  int
	seat  *seat  // nil: there is none to give up
	stall *stall // nil: the server's own deadline is enough
}

func (w *answerWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *answerWriter) Write(p []byte) (int, error) {
	w.seat.leave()
	if w.stall == nil {
		return w.ResponseWriter.Write(p)
	}
	w.stall.begin()
	defer w.stall.end()
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController set deadlines.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands over the connection of an HTTP/1.1 request.
func (w *answerWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.seat.leave()
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *answerWriter) Flush() { _ = w.FlushError() }

// FlushError sends what is buffered.
func (w *answerWriter) FlushError() error {
	w.seat.leave()
	if w.stall != nil {
		w.stall.begin()
		defer w.stall.end()
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}
