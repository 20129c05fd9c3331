package kinds

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	"orch/server/auth"
	"orch/server/registry"
)

type csrConditions = []certificatesv1.CertificateSigningRequestCondition

func certificateSigningRequests() *registry.Resource {
	spec := within(func(c *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequestSpec {
		return &c.Spec
	})
	status := within(func(c *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequestStatus {
		return &c.Status
	})
	return entry[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](certificatesv1.SchemeGroupVersion, "certificatesigningrequests", traits[*certificatesv1.CertificateSigningRequest]{
		ShortNames: []string{"csr"}, Cluster: true,
		Status: status,
		StatusPrepare: func(c, old *certificatesv1.CertificateSigningRequest) {
			spec.carry(c, old)
			stampConditions(c, old, metav1.Now().Rfc3339Copy())
		},
		StatusValidate: validateCSRStatus,
		PrepareCreate: func(ctx context.Context, _ *registry.Registry, c *certificatesv1.CertificateSigningRequest) error {
			requestedBy(c, auth.UserFrom(ctx))
			return nil
		},
		// A request never changes; only its status and approval do.
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, c, old *certificatesv1.CertificateSigningRequest) error {
			spec.carry(c, old)
			return nil
		},
		Validate:            validateCSR,
		ValidateName:        func(string, bool) []string { return nil },
		UnconditionalUpdate: true,
		Fields: func(c *certificatesv1.CertificateSigningRequest) fields.Set {
			return fields.Set{"spec.signerName": c.Spec.SignerName}
		},
		Columns: columns(
			nameColumn(),
			ageColumn(),
			column("SignerName", "string", doc(certificatesv1.CertificateSigningRequestSpec{}, "signerName")),
			column("Requestor", "string", doc(certificatesv1.CertificateSigningRequestSpec{}, "request")),
			column("RequestedDuration", "string", doc(certificatesv1.CertificateSigningRequestSpec{}, "expirationSeconds")),
			column("Condition", "string", doc(certificatesv1.CertificateSigningRequestStatus{}, "conditions")),
		),
		Row: csrRow,
		Subresources: []*registry.Subresource{{Name: "approval", Update: &registry.View{
			Prepare: func(_ context.Context, obj, old registry.Object) {
				c, was := obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
				spec.carry(c, was)
				conditions := c.Status.Conditions
				status.carry(c, was)
				c.Status.Conditions = conditions
				stampConditions(c, was, metav1.Now().Rfc3339Copy())
			},
			Validate: compare(validateCSRApproval),
		}}},
	})
}

// requestedBy records who asked; nobody can claim to be someone else.
func requestedBy(c *certificatesv1.CertificateSigningRequest, u *auth.User) {
	c.Spec.Username, c.Spec.UID, c.Spec.Groups, c.Spec.Extra = u.Name, u.UID, u.Groups, nil
	if len(u.Extra) == 0 {
		return
	}
	c.Spec.Extra = make(map[string]certificatesv1.ExtraValue, len(u.Extra))
	for k, v := range u.Extra {
		c.Spec.Extra[k] = v
	}
}

// stampConditions fills in the times that the client left out.
func stampConditions(c, old *certificatesv1.CertificateSigningRequest, now metav1.Time) {
	for i := range c.Status.Conditions {
		cond := &c.Status.Conditions[i]
		if cond.LastUpdateTime.IsZero() {
			cond.LastUpdateTime = now
		}
		if !cond.LastTransitionTime.IsZero() {
			continue
		}
		cond.LastTransitionTime = now
		for _, was := range old.Status.Conditions {
			if was.Type == cond.Type && was.Status == cond.Status && !was.LastTransitionTime.IsZero() {
				cond.LastTransitionTime = was.LastTransitionTime
			}
		}
	}
}

func hasCSRCondition(conditions csrConditions, t certificatesv1.RequestConditionType) bool {
	for _, c := range conditions {
		if c.Type == t {
			return true
		}
	}
	return false
}

func csrRow(c *certificatesv1.CertificateSigningRequest, now time.Time) []any {
	state := "Pending"
	switch {
	case hasCSRCondition(c.Status.Conditions, certificatesv1.CertificateDenied):
		state = "Denied"
	case hasCSRCondition(c.Status.Conditions, certificatesv1.CertificateApproved):
		state = "Approved"
	}
	if hasCSRCondition(c.Status.Conditions, certificatesv1.CertificateFailed) {
		state += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		state += ",Issued"
	}
	asked := "<none>"
	if s := c.Spec.ExpirationSeconds; s != nil {
		asked = duration.HumanDuration(time.Duration(*s) * time.Second)
	}
	return []any{c.Name, age(c, now), orText(c.Spec.SignerName, "<none>"), c.Spec.Username, asked, state}
}
