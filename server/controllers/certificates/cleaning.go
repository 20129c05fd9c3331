package certificates

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/pki"
	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// How long requests are kept.
const (
	keepDone    = time.Hour      // issued, denied or failed
	keepPending = 24 * time.Hour // not decided, or approved and never signed
)

// Cleaning deletes requests that nobody needs any more.
func Cleaning(r *registry.Registry, now func() time.Time) *loop.Controller {
	requests := registry.Of[request](r)
	return &loop.Controller{
		Name:    "csrcleaner",
		Sources: []loop.Source{loop.Each[request](r)},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			c, err := requests.Get("", key.Name)
			if err != nil {
				return 0, nil
			}
			if wait := expiry(c).Sub(now()); wait > 0 {
				return wait, nil
			}
			err = requests.Delete(ctx, "", c.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &c.UID}})
			return 0, children.IgnoreNotFound(err)
		},
	}
}

// expiry is when a request is to be deleted.
func expiry(c request) time.Time {
	after := func(kind certificatesv1.RequestConditionType, keep time.Duration) (time.Time, bool) {
		found := condition(c, kind)
		if found == nil || found.LastUpdateTime.IsZero() {
			return time.Time{}, false
		}
		return found.LastUpdateTime.Add(keep), true
	}
	if at, ok := after(certificatesv1.CertificateDenied, keepDone); ok {
		return at
	}
	if at, ok := after(certificatesv1.CertificateFailed, keepDone); ok {
		return at
	}
	if len(c.Status.Certificate) == 0 {
		if at, ok := after(certificatesv1.CertificateApproved, keepPending); ok {
			return at
		}
		return c.CreationTimestamp.Add(keepPending)
	}
	at, ok := after(certificatesv1.CertificateApproved, keepDone)
	if !ok {
		at = c.CreationTimestamp.Add(keepPending)
	}
	if certificate, err := pki.Leaf(c.Status.Certificate); err == nil && certificate.NotAfter.Before(at) {
		return certificate.NotAfter
	}
	return at
}
