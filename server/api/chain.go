package api

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
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
	counted := &countingWriter{ResponseWriter: w, code: http.StatusOK}
	defer func() { done(counted.code) }()
	s.identify(counted, r, q)
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
		user, err := s.cfg.Authenticator.Authenticate(r)
		if err != nil {
			s.fail(w, r, apierrors.NewUnauthorized("Unauthorized"))
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
			err = apierrors.NewUnauthorized("Unauthorized")
		}
		s.fail(w, r, err)
		return
	}
	s.admit(w, r.WithContext(auth.WithUser(r.Context(), q.user)), q)
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

// admit bounds the requests in flight and their time, except for streams. Those
// beyond the bound wait.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, q *request) {
	if q.longRunning() {
		s.route(w, r, q)
		return
	}
	slots := s.reads
	if q.writes() {
		slots = s.writes
	}
	switch {
	case q.urgent():
		if slots.try() {
			defer slots.release()
		}
	case slots.take(r.Context(), q.user.Name):
		defer slots.release()
	default:
		s.fail(w, r, apierrors.NewTooManyRequests("Too many requests, please try again later.", 1))
		return
	}
	timeout, err := s.timeout(q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	s.route(w, r.WithContext(ctx), q)
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

// countingWriter remembers the status code for the metrics.
type countingWriter struct {
	http.ResponseWriter
	code int
}

func (w *countingWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach Flush and Hijack.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands over the connection of an HTTP/1.1 request.
func (w *countingWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *countingWriter) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}
