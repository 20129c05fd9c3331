package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/server/auth"
)

// errRevoked is the cause that ends streams whose user's credentials are no
// longer good.
var errRevoked = errors.New("the credentials of this stream have been revoked")

// lasting knows, of each request that lasts, what it was let in by. Others end
// soon; a watch or an exec of a node that was removed would go on for ever. The
// zero value is ready.
type lasting struct {
	mu   sync.Mutex
	open map[string]map[*held]struct{} // by the name of the user who showed the credentials
}

type held struct {
	user  *auth.User
	proof *http.Request
	end   context.CancelCauseFunc
}

// proofOf keeps of r what shows who makes it, before authentication takes
// secrets out of it.
func proofOf(r *http.Request) *http.Request {
	proof := &http.Request{Method: r.Method, URL: r.URL, TLS: r.TLS, Header: make(http.Header, 2)}
	for _, name := range [2]string{"Authorization", "Sec-Websocket-Protocol"} {
		if values := r.Header[name]; len(values) > 0 {
			proof.Header[name] = append([]string(nil), values...)
		}
	}
	return proof
}

// add gives a context that ends when the credentials do; done must be called.
func (l *lasting) add(parent context.Context, user *auth.User, proof *http.Request) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(parent)
	h := &held{user, proof, cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[string]map[*held]struct{})
	}
	if l.open[user.Name] == nil {
		l.open[user.Name] = make(map[*held]struct{})
	}
	l.open[user.Name][h] = struct{}{}
	return ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if delete(l.open[user.Name], h); len(l.open[user.Name]) == 0 {
			delete(l.open, user.Name)
		}
		cancel(nil)
	}
}

// of gives those that match among the requests of a user, or of all ("").
func (l *lasting) of(name string, match func(*auth.User) bool) (found []*held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	look := func(requests map[*held]struct{}) {
		for h := range requests {
			if match == nil || match(h.user) {
				found = append(found, h)
			}
		}
	}
	if name != "" {
		look(l.open[name])
		return found
	}
	for _, requests := range l.open {
		look(requests)
	}
	return found
}

// Recheck looks at the credentials again by which requests that last were let
// in, of the user of that name ("": of all) and as match says (nil: all), and
// ends those whose are no longer good.
func (s *Server) Recheck(name string, match func(*auth.User) bool) {
	for _, h := range s.lasting.of(name, match) {
		proof := h.proof.Clone(context.Background())
		proof.Header = h.proof.Header.Clone()
		if u, err := s.cfg.Authenticator.Authenticate(proof); err != nil || u == nil || u.Name != h.user.Name {
			h.end(errRevoked)
		}
	}
}

// Vouch takes a request for a path beside the API through the same checks as
// all others: who makes it, as whom, and whether that one may. The request that
// it gives ends when the credentials do; done must be called.
func (s *Server) Vouch(r *http.Request) (vouched *http.Request, done func(), err error) {
	proof := proofOf(r)
	user, err := s.cfg.Authenticator.Authenticate(r)
	if err != nil || user == nil {
		return nil, nil, apierrors.NewUnauthorized("credentials are needed")
	}
	q := &request{verb: strings.ToLower(r.Method), path: r.URL.Path, user: user}
	if err := s.impersonate(r, q); err != nil {
		return nil, nil, err
	}
	if err := s.authorize(r.Context(), q.attributes()); err != nil {
		return nil, nil, err
	}
	ctx, done := s.lasting.add(r.Context(), user, proof)
	return r.WithContext(ctx), done, nil
}
