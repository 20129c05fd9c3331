// Package auth decides who a request comes from and what it may do:
// client certificates, service-account and bootstrap tokens, RBAC and the node
// authorizer.
package auth

import (
	"context"
	"net/http"
)

// User is an authenticated identity.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

type userKey struct{}

// WithUser gives a context that carries the user who makes the request.
func WithUser(ctx context.Context, u *User) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom is the user of ctx. Code inside the server runs without one and gets
// the loopback identity system:apiserver in group system:masters.
func UserFrom(ctx context.Context) *User {
	if u, ok := ctx.Value(userKey{}).(*User); ok {
		return u
	}
	return &User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}
}

// IsServer tells whether ctx is of code inside the server, and not of a request.
func IsServer(ctx context.Context) bool {
	_, ok := ctx.Value(userKey{}).(*User)
	return !ok
}

// Attributes say what a request wants to do.
type Attributes struct {
	User                         *User
	Verb                         string // get list watch create update patch delete deletecollection, or the HTTP verb in lower case
	Group, Version               string
	Resource                     string
	Subresource                  string
	Namespace, Name              string
	Path                         string // of non-resource requests
	ResourceRequest              bool
	LabelSelector, FieldSelector string
}

// Authenticator finds the user of a request; nil user and nil error: no credentials were shown.
type Authenticator interface {
	Authenticate(r *http.Request) (*User, error)
}

// Authorizer decides; reason explains a refusal in RBAC's words.
type Authorizer interface {
	Authorize(ctx context.Context, a *Attributes) (allowed bool, reason string, err error)
}
