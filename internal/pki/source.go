package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// retryRenewal is how long a failed renewal waits for the next attempt. The
// last third of a certificate's life leaves room for thousands of them.
const retryRenewal = time.Minute

// Source is a certificate that is renewed at two thirds of its life, for use
// by listeners and clients that stay up.
type Source struct {
	renew   func(ctx context.Context) (*tls.Certificate, error)
	current atomic.Pointer[tls.Certificate]
}

// NewSource starts with the certificate first; renew makes the next one.
func NewSource(first *tls.Certificate, renew func(ctx context.Context) (*tls.Certificate, error)) (*Source, error) {
	s := &Source{renew: renew}
	if err := s.set(first); err != nil {
		return nil, err
	}
	return s, nil
}

// NewIssuedSource is a source of certificates that a signs itself.
func NewIssuedSource(a *Authority, profile Profile, now func() time.Time) (*Source, error) {
	issue := func(context.Context) (*tls.Certificate, error) {
		pair, err := a.Issue(profile, now())
		if err != nil {
			return nil, err
		}
		return pair.Certificate()
	}
	first, err := issue(context.Background())
	if err != nil {
		return nil, err
	}
	return NewSource(first, issue)
}

func (s *Source) set(cert *tls.Certificate) error {
	if cert.Leaf == nil {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return fmt.Errorf("parse certificate: %w", err)
		}
		cert.Leaf = leaf
	}
	s.current.Store(cert)
	return nil
}

// Current is the certificate in use.
func (s *Source) Current() *tls.Certificate { return s.current.Load() }

// GetCertificate is for tls.Config of a server.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Current(), nil
}

// GetClientCertificate is for tls.Config of a client.
func (s *Source) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.Current(), nil
}

// RenewalTime is when two thirds of cert's life are over.
func RenewalTime(cert *x509.Certificate) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotBefore.Add(life * 2 / 3)
}

// Run renews the certificate when it is due, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Until(RenewalTime(s.Current().Leaf)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(s.renewOnce(ctx))
	}
}

// renewOnce gives the time to wait for the next renewal.
func (s *Source) renewOnce(ctx context.Context) time.Duration {
	cert, err := s.renew(ctx)
	if err == nil {
		err = s.set(cert)
	}
	leaf := s.Current().Leaf
	if err != nil {
		slog.Warn("certificate not renewed, trying again", "component", "pki",
			"subject", leaf.Subject.CommonName, "expires", leaf.NotAfter, "error", err)
		return retryRenewal
	}
	slog.Info("certificate renewed", "component", "pki", "subject", leaf.Subject.CommonName, "expires", leaf.NotAfter)
	return max(time.Until(RenewalTime(leaf)), retryRenewal)
}
