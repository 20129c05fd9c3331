package join

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"

	"orch/server/auth"
	"orch/server/controllers/nodes"
	"orch/server/registry"
)

// Recheck has the credentials looked at again by which requests that last were
// let in: those of the user of that name ("": of all) and as match says (nil:
// all of them).
type Recheck func(name string, match func(*auth.User) bool)

// FollowCredentials calls recheck whenever something goes that credentials rest
// on, until ctx ends. It comes right after the event: no watch or exec outlives
// its credentials for longer.
func (g *Guard) FollowCredentials(ctx context.Context, recheck Recheck) error {
	r := g.objects.registry.Load()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return registry.Of[*corev1.Secret](r).Watch(ctx, func(old, s *corev1.Secret, deleted bool) {
			if old != nil || deleted {
				recheckSecret(recheck, s, deleted)
			}
		}, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.ServiceAccount](r).Watch(ctx, func(old, sa *corev1.ServiceAccount, deleted bool) {
			if deleted || old != nil && old.UID != sa.UID {
				recheck(auth.ServiceAccountUser(sa.Namespace, sa.Name), nil)
			}
		}, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.Pod](r).Watch(ctx, func(_, p *corev1.Pod, deleted bool) {
			if deleted {
				recheck(auth.ServiceAccountUser(p.Namespace, p.Spec.ServiceAccountName), boundTo(auth.ExtraPodUID, string(p.UID)))
			}
		}, nil)
	})
	group.Go(func() error {
		return registry.Of[*corev1.Node](r).Watch(ctx, func(_, n *corev1.Node, deleted bool) {
			if deleted {
				recheck("", boundTo(auth.ExtraNodeUID, string(n.UID)))
			}
		}, nil)
	})
	return group.Wait()
}

func boundTo(key, uid string) func(*auth.User) bool {
	return func(u *auth.User) bool { return slices.Contains(u.Extra[key], uid) }
}

// recheckSecret: the Secret of a node's key, a token of a service account or a
// bootstrap token; or one that a token is bound to.
func recheckSecret(recheck Recheck, s *corev1.Secret, deleted bool) {
	node, isKey := strings.CutPrefix(s.Name, nodes.KeyName(""))
	switch {
	case s.Namespace == metav1.NamespaceSystem && isKey:
		recheck(userOf(node), nil)
	case s.Type == corev1.SecretTypeServiceAccountToken:
		recheck(auth.ServiceAccountUser(s.Namespace, s.Annotations[corev1.ServiceAccountNameKey]), nil)
	case s.Type == corev1.SecretTypeBootstrapToken:
		recheck(auth.BootstrapUser(string(s.Data["token-id"])), nil)
	case deleted:
		recheck("", func(u *auth.User) bool {
			namespace, _, ok := auth.SplitServiceAccount(u.Name)
			return ok && namespace == s.Namespace
		})
	}
}
