package server

import (
	"context"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"orch/server/auth"
	"orch/server/registry/kinds"
)

// tableConfig gives the resource table what it asks of security.
func (a *assembly) tableConfig() kinds.Config {
	return kinds.Config{
		ServiceCIDR:   a.cfg.ServiceCIDR,
		ClusterDomain: a.cfg.ClusterDomain,
		Disabled:      a.cfg.Disabled,
		// Claims and volumes in use wait for the controllers that release them.
		ProtectVolumes: !a.cfg.Disabled("controllers"),
		Authorizer:     a.guard.Authorizer,
		Rules: func(_ context.Context, user *auth.User, namespace string) (authorizationv1.SubjectRulesReviewStatus, error) {
			return a.guard.RBAC.ReviewRules(user, namespace), nil
		},
		ReviewToken: a.guard.Tokens.CheckToken,
		IssueToken: func(_ context.Context, h kinds.TokenHolder, spec authenticationv1.TokenRequestSpec) (string, time.Time, error) {
			return a.guard.Issuer.Issue(auth.TokenHolder(h), spec)
		},
		Audiences: a.guard.Issuer.Audiences(),
	}
}
