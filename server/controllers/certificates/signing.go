// Package certificates signs approved certificate requests with the cluster's
// CA and clears away old ones.
package certificates

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/pki"
	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

type (
	request  = *certificatesv1.CertificateSigningRequest
	keyUsage = certificatesv1.KeyUsage
)

// Lifetimes of certificates: the longest that is given, and the shortest that
// can be asked for.
const (
	maxLifetime = 365 * 24 * time.Hour
	minLifetime = 10 * time.Minute
)

// Signing signs requests for the cluster's own signers.
func Signing(r *registry.Registry, ca *pki.Authority, now func() time.Time) *loop.Controller {
	requests, nodes := registry.Of[request](r), registry.Of[*corev1.Node](r)
	return &loop.Controller{
		Name: "csrsigning",
		Sources: []loop.Source{loop.Changes(r, func(_, c request, deleted bool) []loop.Key {
			if deleted || !wantsSigning(c) {
				return nil
			}
			return []loop.Key{loop.KeyOf(c)}
		})},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			c, err := requests.Get("", key.Name)
			if err != nil || !wantsSigning(c) {
				return 0, nil
			}
			node := func(name string) (*corev1.Node, error) { return nodes.Get("", name) }
			certificate, refusal, err := sign(c, ca, node, now())
			if err != nil {
				return 0, fmt.Errorf("sign certificate request: %w", err)
			}
			_, err = requests.MutateStatus(ctx, "", c.Name, func(c request) error {
				if refusal == nil {
					c.Status.Certificate = certificate
					return nil
				}
				c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
					Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
					Message: refusal.Error(), LastUpdateTime: metav1.NewTime(now()).Rfc3339Copy(),
				})
				return nil
			})
			return 0, children.IgnoreNotFound(err)
		},
	}
}

func condition(c request, kind certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	for i := range c.Status.Conditions {
		if c.Status.Conditions[i].Type == kind {
			return &c.Status.Conditions[i]
		}
	}
	return nil
}

// wantsSigning tells whether a request is approved, ours and not dealt with.
func wantsSigning(c request) bool {
	return len(c.Status.Certificate) == 0 && condition(c, certificatesv1.CertificateApproved) != nil &&
		condition(c, certificatesv1.CertificateDenied) == nil && condition(c, certificatesv1.CertificateFailed) == nil &&
		checks()[c.Spec.SignerName] != nil
}

// checks are the signers that we are, each with what it refuses.
func checks() map[string]func(*x509.CertificateRequest, []keyUsage) error {
	return map[string]func(*x509.CertificateRequest, []keyUsage) error{
		certificatesv1.KubeAPIServerClientSignerName:        checkClient,
		certificatesv1.KubeAPIServerClientKubeletSignerName: checkNodeClient,
		certificatesv1.KubeletServingSignerName:             checkNodeServing,
	}
}

// sign gives the certificate, or why the signer refuses the request.
func sign(c request, ca *pki.Authority, node func(string) (*corev1.Node, error), now time.Time) (certificate []byte, refusal, err error) {
	parsed, err := pki.ParseRequest(c.Spec.Request)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be read: %w", err), nil // nor ever will
	}
	if refusal := checks()[c.Spec.SignerName](parsed, c.Spec.Usages); refusal != nil {
		return nil, refusal, nil
	}
	if c.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		if refusal := checkNodeNames(parsed, node); refusal != nil {
			return nil, refusal, nil
		}
	}
	profile := pki.Profile{
		CommonName: parsed.Subject.CommonName, Organizations: parsed.Subject.Organization,
		DNSNames: parsed.DNSNames, IPs: parsed.IPAddresses, Lifetime: lifetime(c.Spec.ExpirationSeconds),
	}
	for _, usage := range c.Spec.Usages {
		switch usage {
		case certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature:
			profile.Usages = append(profile.Usages, x509.KeyUsageDigitalSignature)
		case certificatesv1.UsageKeyEncipherment:
			profile.Usages = append(profile.Usages, x509.KeyUsageKeyEncipherment)
		case certificatesv1.UsageClientAuth:
			profile.Client = true
		case certificatesv1.UsageServerAuth:
			profile.Server = true
		}
	}
	certificate, err = ca.Sign(parsed.PublicKey, profile, now)
	return certificate, nil, err
}

func lifetime(asked *int32) time.Duration {
	if asked == nil {
		return maxLifetime
	}
	return min(max(time.Duration(*asked)*time.Second, minLifetime), maxLifetime)
}

func checkClient(_ *x509.CertificateRequest, usages []keyUsage) error {
	for _, u := range usages {
		switch u {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth:
		default:
			return fmt.Errorf("invalid usage for client certificate: %s", u)
		}
	}
	if !slices.Contains(usages, certificatesv1.UsageClientAuth) {
		return fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
	}
	return nil
}

func checkNodeClient(r *x509.CertificateRequest, usages []keyUsage) error {
	switch {
	case !slices.Equal(r.Subject.Organization, []string{"system:nodes"}):
		return errors.New("subject organization is not system:nodes")
	case len(r.DNSNames) > 0:
		return errors.New("DNS subjectAltNames are not allowed")
	case len(r.EmailAddresses) > 0:
		return errors.New("Email subjectAltNames are not allowed")
	case len(r.IPAddresses) > 0:
		return errors.New("IP subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	case !strings.HasPrefix(r.Subject.CommonName, "system:node:"):
		return errors.New("subject common name does not begin with system:node:")
	}
	return checkUsages(usages, certificatesv1.UsageClientAuth)
}

func checkNodeServing(r *x509.CertificateRequest, usages []keyUsage) error {
	switch {
	case !slices.Equal(r.Subject.Organization, []string{"system:nodes"}):
		return errors.New("subject organization is not system:nodes")
	case len(r.DNSNames) == 0 && len(r.IPAddresses) == 0:
		return errors.New("DNS or IP subjectAltName is required")
	case len(r.EmailAddresses) > 0:
		return errors.New("Email subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	}
	if err := checkUsages(usages, certificatesv1.UsageServerAuth); err != nil {
		return err
	}
	if !strings.HasPrefix(r.Subject.CommonName, "system:node:") {
		return errors.New("subject common name does not begin with system:node:")
	}
	return nil
}

// checkNodeNames keeps the certificate under which a node serves to the node's
// name and the addresses in its Node. Who approves a request hardly reads what
// is encoded in it, and all clients of the API trust the same authority.
func checkNodeNames(r *x509.CertificateRequest, find func(string) (*corev1.Node, error)) error {
	name := strings.TrimPrefix(r.Subject.CommonName, "system:node:")
	node, err := find(name)
	if err != nil {
		return fmt.Errorf("node %q does not exist", name)
	}
	own := func(text string) bool {
		return text == name || slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == text })
	}
	for _, dns := range r.DNSNames {
		if !own(dns) {
			return fmt.Errorf("DNS subjectAltName %q is neither the name nor an address of node %q", dns, name)
		}
	}
	for _, ip := range r.IPAddresses {
		if !own(ip.String()) {
			return fmt.Errorf("IP subjectAltName %q is not an address of node %q", ip, name)
		}
	}
	return nil
}

// checkUsages wants a digital signature and purpose; RSA keys may encipher too.
func checkUsages(usages []keyUsage, purpose keyUsage) error {
	have := map[keyUsage]bool{}
	for _, u := range usages {
		have[u] = true
	}
	delete(have, certificatesv1.UsageKeyEncipherment)
	if len(have) == 2 && have[certificatesv1.UsageDigitalSignature] && have[purpose] {
		return nil
	}
	want := map[string]bool{string(purpose): true, string(certificatesv1.UsageDigitalSignature): true, string(certificatesv1.UsageKeyEncipherment): true}
	return fmt.Errorf("usages did not match %v", slices.Sorted(maps.Keys(want)))
}
