package join

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"golang.org/x/sync/errgroup"

	"orch/server/auth"
	"orch/server/registry"
)

// Guard is authentication and authorization of one server.
type Guard struct {
	Authenticator auth.Authenticator
	Authorizer    auth.Authorizer
	Tokens        auth.BearerTokens // for TokenReview
	Issuer        *auth.Issuer
	RBAC          *auth.RBAC
	Revoked       func(*x509.Certificate) bool // certificates of nodes that are no longer good

	nodes   *auth.Nodes
	objects *objects
	synced  chan struct{}
}

// NewGuard makes the guard; until Run has read the registry it allows
// system:masters alone.
func NewGuard(keys *Keys, clusterDomain string, now func() time.Time) (*Guard, error) {
	issuer, err := auth.NewIssuer(keys.ServiceAccounts, clusterDomain, now)
	if err != nil {
		return nil, err
	}
	g := &Guard{Issuer: issuer, RBAC: auth.NewRBAC(), objects: &objects{}, synced: make(chan struct{})}
	g.nodes = auth.NewNodes(g.objects)
	g.Revoked = (&nodeKeys{g.objects}).Revoked
	g.Tokens = auth.BearerTokens{
		auth.NewServiceAccountTokens(issuer, g.objects),
		auth.BootstrapTokens{Objects: g.objects, Now: now, Audiences: issuer.Audiences()},
	}
	g.Authenticator = auth.Authenticators{auth.Certificates{Now: now, Revoked: g.Revoked}, g.Tokens, auth.Anonymous{}}
	g.Authorizer = auth.Authorizers{auth.Masters{}, g.nodes, g.RBAC}
	return g, nil
}

// Escalation is what admission asks about roles and bindings.
func (g *Guard) Escalation() auth.Escalation {
	return auth.Escalation{RBAC: g.RBAC, Authorizer: g.Authorizer}
}

// Bind gives the guard the registry. It must come before the first request.
func (g *Guard) Bind(r *registry.Registry) { g.objects.registry.Store(r) }

// Synced is closed once Run knows all roles, bindings and pods.
func (g *Guard) Synced() <-chan struct{} { return g.synced }

// Run follows the objects that decisions rest on, until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	r := g.objects.registry.Load()
	var pending atomic.Int32
	pending.Store(5)
	synced := func() {
		if pending.Add(-1) == 0 {
			close(g.synced)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return registry.Of[*rbacv1.ClusterRole](r).Watch(ctx, g.RBAC.OnClusterRole, synced) })
	group.Go(func() error {
		return registry.Of[*rbacv1.ClusterRoleBinding](r).Watch(ctx, g.RBAC.OnClusterRoleBinding, synced)
	})
	group.Go(func() error { return registry.Of[*rbacv1.Role](r).Watch(ctx, g.RBAC.OnRole, synced) })
	group.Go(func() error { return registry.Of[*rbacv1.RoleBinding](r).Watch(ctx, g.RBAC.OnRoleBinding, synced) })
	group.Go(func() error { return registry.Of[*corev1.Pod](r).Watch(ctx, g.nodes.OnPod, synced) })
	return group.Wait()
}
