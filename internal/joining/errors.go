package joining

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// RefusedError says that a server understood the request to join and declined.
type RefusedError struct {
	Server string
	Status int
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("server %s refuses this node: %s", e.Server, e.Reason)
}

// ClockError says that this machine and the server do not agree on the time.
type ClockError struct {
	Server      string
	Here, There time.Time
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("this machine's clock says %s, that of server %s %s: set the wrong one (timedatectl set-ntp true, or date -s), for certificates hold between two dates",
		e.Here.UTC().Format(time.RFC3339), e.Server, e.There.UTC().Format(time.RFC3339))
}

// clockTolerance is how far apart clocks may be: certificates are good from an
// hour before they are made.
const clockTolerance = 30 * time.Minute

// checkClock compares the server's Date header with the clock here. A header
// that is missing or strange proves nothing.
func checkClock(server *url.URL, date string, now time.Time) error {
	there, err := http.ParseTime(date)
	if err != nil || there.Sub(now).Abs() < clockTolerance {
		return nil
	}
	return &ClockError{Server: server.String(), Here: now, There: there}
}

// Retry tells whether joining may succeed later without anybody's help: the
// server is not up yet, or not reachable.
func Retry(err error) bool {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Status >= http.StatusInternalServerError || refused.Status == http.StatusTooManyRequests
	}
	var untrusted *tls.CertificateVerificationError
	var clock *ClockError
	var noTLS tls.RecordHeaderError
	if errors.As(err, &untrusted) || errors.As(err, &clock) || errors.As(err, &noTLS) || errors.Is(err, http.ErrSchemeMismatch) {
		return false
	}
	var unreachable net.Error
	return errors.As(err, &unreachable)
}

// NameTaken tells whether the server declined because another machine has the
// node's name. It may be this one's former self, which ends soon.
func NameTaken(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused) && refused.Status == http.StatusConflict
}

// explain names the mend for the failures that people meet.
func explain(server *url.URL, err error) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %s is not valid at this machine's time (%s), which is from %s to %s: set the clock: %w", server, time.Now().UTC().Format(time.RFC3339),
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), err)
	case errors.As(err, &unknown):
		return fmt.Errorf("%s shows a certificate of another CA than the cluster's: something between here and the server intercepts TLS: %w", server, err)
	case errors.As(err, &host):
		return fmt.Errorf("certificate of %s does not name %q: start the server with --tls-san %s: %w", server, server.Hostname(), server.Hostname(), err)
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s does not speak TLS: is it an orch server, and the port the right one? %w", server, err)
	}
	return fmt.Errorf("reach server %s: %w", server, err)
}
