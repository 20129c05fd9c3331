package admission

import (
	"context"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/controllers/nodes"
	"orch/server/registry"
)

// credentialRecords keeps what the servers remember about credentials out of
// everybody's reach: without its record a revoked token or the key of a removed
// node would be good again, and with another one it would be somebody else's.
type credentialRecords struct{}

func (credentialRecords) Admit(ctx context.Context, a *registry.Attempt) error {
	if a.Namespace != metav1.NamespaceSystem || !isOf(a, "", "secrets", "") || auth.IsServer(ctx) {
		return nil
	}
	name := a.Name
	if secret, ok := a.Object.(*corev1.Secret); ok && name == "" {
		name = secret.Name
	}
	if name == auth.SecretJoinTokens || strings.HasPrefix(name, nodes.KeyName("")) {
		return errors.New("this is the servers' own record of which credentials are revoked: nobody may write or delete it (see orch token rotate, and kubectl delete node)")
	}
	return nil
}
