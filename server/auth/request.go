package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// ErrUnauthorized says that credentials were shown and are no good. The wire
// answers it with 401.
var ErrUnauthorized = errors.New("auth: invalid credentials")

// Authenticators are asked in order; the first that knows the credentials
// decides.
type Authenticators []Authenticator

// Authenticate implements Authenticator.
func (as Authenticators) Authenticate(r *http.Request) (*User, error) {
	for _, a := range as {
		if u, err := a.Authenticate(r); u != nil || err != nil {
			return u, err
		}
	}
	return nil, nil
}

// Certificates authenticates by TLS client certificate: common name and
// organizations are user and groups. The listener's TLS configuration must
// verify the chain (tls.VerifyClientCertIfGiven).
type Certificates struct {
	Now func() time.Time
	// Revoked tells which certificates are refused though the CA signed them;
	// nil: none.
	Revoked func(*x509.Certificate) bool
}

// Authenticate implements Authenticator.
func (c Certificates) Authenticate(r *http.Request) (*User, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil, nil
	}
	cert := r.TLS.PeerCertificates[0]
	if cert.Subject.CommonName == "" {
		return nil, nil
	}
	// The handshake checked the dates; a connection may outlive them.
	if c.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("%w: client certificate of %s has expired", ErrUnauthorized, cert.Subject.CommonName)
	}
	if c.Revoked != nil && c.Revoked(cert) {
		return nil, fmt.Errorf("%w: client certificate of %s has been revoked", ErrUnauthorized, cert.Subject.CommonName)
	}
	sum := sha256.Sum256(cert.Raw)
	return &User{
		Name:   cert.Subject.CommonName,
		Groups: append(slices.Clone(cert.Subject.Organization), GroupAuthenticated),
		Extra:  map[string][]string{extraCredentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	}, nil
}

// Anonymous lets unknown users look at the paths that a load balancer or an
// installer needs before it has credentials. Everything else stays 401.
type Anonymous struct{}

// Authenticate implements Authenticator.
func (Anonymous) Authenticate(r *http.Request) (*User, error) {
	if !publicPath(r.URL.Path) {
		return nil, nil
	}
	return &User{Name: UserAnonymous, Groups: []string{GroupUnauthenticated}}, nil
}

func publicPath(path string) bool {
	switch strings.TrimSuffix(path, "/") {
	case "/healthz", "/livez", "/readyz", "/version":
		return true
	}
	return false
}

// Authorizers are asked in order until one allows; their reasons for refusing
// are given together.
type Authorizers []Authorizer

// Authorize implements Authorizer.
func (as Authorizers) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	var reasons []string
	var errs []error
	for _, authorizer := range as {
		allowed, reason, err := authorizer.Authorize(ctx, a)
		if allowed {
			return true, reason, nil
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return false, strings.Join(reasons, "\n"), errors.Join(errs...)
}

// Masters allows system:masters everything, so that an administrator can mend
// broken RBAC objects.
type Masters struct{}

// Authorize implements Authorizer.
func (Masters) Authorize(_ context.Context, a *Attributes) (bool, string, error) {
	return a.User.InGroup(GroupMasters), "", nil
}
