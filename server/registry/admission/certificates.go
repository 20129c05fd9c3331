package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/registry"
)

// certificateApproval keeps approving and signing certificate requests to
// those who may do so for the request's signer.
type certificateApproval struct{ authorizer auth.Authorizer }

func (c certificateApproval) Admit(ctx context.Context, a *registry.Attempt) error {
	old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != registry.OperationUpdate {
		return nil
	}
	switch a.Subresource {
	case "approval":
		return c.check(ctx, "approve", old.Spec.SignerName)
	case "status":
		csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if ok && slices.Equal(csr.Status.Certificate, old.Status.Certificate) && equality.Semantic.DeepEqual(csr.Status.Conditions, old.Status.Conditions) {
			return nil
		}
		return c.check(ctx, "sign", old.Spec.SignerName)
	}
	return nil
}

// check accepts the right to the signer itself or to all of its domain.
func (c certificateApproval) check(ctx context.Context, verb, signer string) error {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range [2]string{signer, domain + "/*"} {
		allowed, _, err := c.authorizer.Authorize(ctx, &auth.Attributes{
			User: user(ctx), Verb: verb, Group: "certificates.k8s.io", Version: "*", Resource: "signers", Name: name, ResourceRequest: true,
		})
		if allowed && err == nil {
			return nil
		}
	}
	return fmt.Errorf("user not permitted to %s requests with signerName %q", verb, signer)
}

// certificateSubject refuses requests that would make an administrator.
type certificateSubject struct{}

func (certificateSubject) Admit(_ context.Context, a *registry.Attempt) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != registry.OperationCreate || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	parsed, err := pki.ParseRequest(csr.Spec.Request)
	if err != nil {
		return fmt.Errorf("failed to parse CSR: %v", err)
	}
	if slices.Contains(parsed.Subject.Organization, auth.GroupMasters) {
		return fmt.Errorf("use of %s signer with system:masters group is not allowed", certificatesv1.KubeAPIServerClientSignerName)
	}
	return nil
}
