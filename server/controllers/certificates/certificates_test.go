package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/pki"
	"orch/server/controllers/harness"
	"orch/server/registry"
)

func newRequest(t *testing.T, name, signer, commonName string, organizations []string, usages ...keyUsage) request {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := pki.NewRequest(key, commonName, organizations)
	if err != nil {
		t.Fatal(err)
	}
	hour := int32(3600)
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: encoded, SignerName: signer, Usages: usages, ExpirationSeconds: &hour}}
}

func approve(t *testing.T, h *harness.Harness, name string) {
	res := registry.Of[request](h.Registry).Resource()
	_, err := h.Mutate(h.Context(), res, "approval", "", name, func(obj registry.Object) error {
		c := obj.(request)
		c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", LastUpdateTime: metav1.Now(),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSigning(t *testing.T) {
	h := harness.New(t)
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.Run(Signing(h.Registry, ca, time.Now))
	digital, client := certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth
	harness.Create(h, newRequest(t, "good", certificatesv1.KubeAPIServerClientSignerName, "jane", []string{"dev"}, digital, client))
	harness.Create(h, newRequest(t, "bad", certificatesv1.KubeAPIServerClientKubeletSignerName, "jane", []string{"dev"}, digital, client))
	harness.Create(h, newRequest(t, "foreign", "example.com/signer", "jane", nil, digital))
	for _, name := range []string{"good", "bad", "foreign"} {
		approve(t, h, name)
	}
	c := harness.Wait(h, "good", "its certificate", func(c request) bool { return len(c.Status.Certificate) > 0 })
	certificate, err := pki.ParseCertificate(c.Status.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if left := time.Until(certificate.NotAfter); certificate.Subject.CommonName != "jane" || left > time.Hour || left < 55*time.Minute {
		t.Errorf("subject %s, valid for %s", certificate.Subject, left)
	}
	refused := harness.Wait(h, "bad", "its refusal", func(c request) bool { return condition(c, certificatesv1.CertificateFailed) != nil })
	if got := condition(refused, certificatesv1.CertificateFailed); got.Reason != "SignerValidationFailure" || got.Message != "subject organization is not system:nodes" {
		t.Errorf("condition %+v", got)
	}
}

func TestExpiry(t *testing.T) {
	made := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	with := func(certificate string, kinds ...certificatesv1.RequestConditionType) request {
		c := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: made}}
		c.Status.Certificate = []byte(certificate)
		for _, kind := range kinds {
			c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: kind, LastUpdateTime: made})
		}
		return c
	}
	for name, c := range map[string]struct {
		c    request
		want time.Duration
	}{
		"pending":  {with(""), keepPending},
		"denied":   {with("", certificatesv1.CertificateDenied), keepDone},
		"failed":   {with("", certificatesv1.CertificateApproved, certificatesv1.CertificateFailed), keepDone},
		"issued":   {with("x", certificatesv1.CertificateApproved), keepDone},
		"unsigned": {with("", certificatesv1.CertificateApproved), keepPending},
	} {
		if got := expiry(c.c).Sub(made.Time); got != c.want {
			t.Errorf("%s: kept for %s, want %s", name, got, c.want)
		}
	}
}
