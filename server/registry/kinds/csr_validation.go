package kinds

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/internal/pki"
)

func keyUsages() []certificatesv1.KeyUsage {
	return sets.List(sets.New(
		certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment,
		certificatesv1.UsageKeyEncipherment, certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment,
		certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign, certificatesv1.UsageEncipherOnly,
		certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny, certificatesv1.UsageServerAuth,
		certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection,
		certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel,
		certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping, certificatesv1.UsageOCSPSigning,
		certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
	))
}

func validateCSR(c *certificatesv1.CertificateSigningRequest) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &c.Spec
	if err := checkSigningRequest(s.Request); err != nil {
		f.invalid(at.Child("request"), s.Request, err.Error())
	}
	if len(s.Usages) == 0 {
		f.required(at.Child("usages"), "")
	}
	seen := sets.New[certificatesv1.KeyUsage]()
	for i, usage := range s.Usages {
		supports(&f, at.Child("usages").Index(i), usage, keyUsages()...)
		if seen.Has(usage) {
			f.add(field.Duplicate(at.Child("usages").Index(i), usage))
		}
		seen.Insert(usage)
	}
	f.signerName(at.Child("signerName"), s.SignerName)
	if seconds := s.ExpirationSeconds; seconds != nil && *seconds < 600 {
		f.invalid(at.Child("expirationSeconds"), *seconds, "may not specify a duration less than 600 seconds (10 minutes)")
	}
	f.csrConditions(field.NewPath("status", "conditions"), c.Status.Conditions)
	if err := checkCertificates(c.Status.Certificate); err != nil {
		f.invalid(field.NewPath("status", "certificate"), "<certificate data>", err.Error())
	}
	return f.list
}

func checkSigningRequest(text []byte) error {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	if len(bytes.TrimSpace(rest)) > 0 { // who approves may see it, and the signer another
		return errors.New("nothing may follow the CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	return pki.CheckSignature(request)
}

func checkCertificates(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	blocks := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) > 0 {
			return errors.New("no PEM block headers are permitted")
		}
		certificates, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		if len(certificates) == 0 {
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
		blocks++
	}
	if blocks == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// signerName is a domain and a path in it.
func (f *faults) signerName(at *field.Path, name string) {
	if name == "" {
		f.required(at, "")
		return
	}
	if name == "kubernetes.io/legacy-unknown" {
		f.invalid(at, name, "the legacy signerName is not allowed via this API version")
		return
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		f.invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	f.invalids(at, domain, validation.IsDNS1123Subdomain(domain))
	if !strings.Contains(domain, ".") {
		f.invalid(at, domain, "should be a domain with at least two segments separated by dots")
	}
	f.invalids(at, path, validation.IsDNS1123Subdomain(path))
	if len(name) > validation.DNS1123SubdomainMaxLength*2+1 {
		f.add(field.TooLong(at, "", validation.DNS1123SubdomainMaxLength*2+1))
	}
}

func (f *faults) csrConditions(at *field.Path, conditions csrConditions) {
	seen := sets.New[certificatesv1.RequestConditionType]()
	for i, c := range conditions {
		path := at.Index(i)
		if c.Type == "" {
			f.required(path.Child("type"), "")
		}
		switch c.Type {
		case certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			oneOf(f, path.Child("status"), c.Status, corev1.ConditionTrue)
		default:
			oneOf(f, path.Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
		}
		if seen.Has(c.Type) {
			f.add(field.Duplicate(path.Child("type"), c.Type))
		}
		seen.Insert(c.Type)
		decided := c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied
		if decided && seen.HasAll(certificatesv1.CertificateApproved, certificatesv1.CertificateDenied) {
			f.invalid(at, c.Type, "Approved and Denied conditions are mutually exclusive")
		}
	}
}

func conditionsOf(conditions csrConditions, t certificatesv1.RequestConditionType) csrConditions {
	var of csrConditions
	for _, c := range conditions {
		if c.Type == t {
			of = append(of, c)
		}
	}
	return of
}

// conditionsKept: decisions are final.
func (f *faults) conditionsKept(c, old *certificatesv1.CertificateSigningRequest) {
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		if len(conditionsOf(c.Status.Conditions, t)) < len(conditionsOf(old.Status.Conditions, t)) {
			f.forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t))
		}
	}
}

// validateCSRStatus lets a signer fill in the certificate, once, but not approve.
func validateCSRStatus(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	f := faults{list: validateCSR(c)}
	f.conditionsKept(c, old)
	at := field.NewPath("status")
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		now, was := conditionsOf(c.Status.Conditions, t), conditionsOf(old.Status.Conditions, t)
		switch {
		case len(now) > len(was):
			f.forbidden(at.Child("conditions"), fmt.Sprintf("updates may not add a condition of type %q", t))
		case len(now) == len(was) && !sameValue(now, was):
			f.forbidden(at.Child("conditions"), fmt.Sprintf("updates may not modify a condition of type %q\n%v", t, diff.Diff(was, now)))
		}
	}
	if len(old.Status.Certificate) > 0 && !bytes.Equal(c.Status.Certificate, old.Status.Certificate) {
		f.forbidden(at.Child("certificate"), "updates may not modify existing certificate content")
	}
	return f.list
}

func validateCSRApproval(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	f := faults{list: validateCSR(c)}
	f.conditionsKept(c, old)
	return f.list
}
