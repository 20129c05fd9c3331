package join

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/controllers/nodes"
	"orch/server/registry"
)

// A node's identity is its key: the Secret kube-system/node-key.<node> holds
// the digest of the one that has the name, or of the one that lost it when the
// Node was deleted.

func userOf(node string) string { return auth.NodeUserPrefix + node }

func keyDigest(subjectPublicKeyInfo []byte) string {
	sum := sha256.Sum256(subjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// nodeKeys tells which node certificates are no longer good.
type nodeKeys struct{ objects *objects }

// Revoked tells whether cert is a node's whose name belongs to another key by
// now, or was given up with the Node.
func (k *nodeKeys) Revoked(cert *x509.Certificate) bool {
	node, ok := strings.CutPrefix(cert.Subject.CommonName, auth.NodeUserPrefix)
	if !ok {
		return false
	}
	secret, err := k.objects.Secret(metav1.NamespaceSystem, nodes.KeyName(node))
	if err != nil {
		return false // never joined by token: its certificate was approved by hand
	}
	return string(secret.Data[nodes.KeyHolder]) != keyDigest(cert.RawSubjectPublicKeyInfo)
}

// claimName gives a node name to the key that asks for it, so that one node
// cannot pass itself off as another. The name is free for another key once its
// Node is deleted, or not ready: a machine that was installed anew comes back
// under its name.
func claimName(ctx context.Context, r *registry.Registry, node string, csr *x509.CertificateRequest) error {
	key := keyDigest(csr.RawSubjectPublicKeyInfo)
	secrets := registry.Of[*corev1.Secret](r)
	current, err := secrets.Get(metav1.NamespaceSystem, nodes.KeyName(node))
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: nodes.KeyName(node)},
			Type:       nodes.KeyType,
			Data:       map[string][]byte{nodes.KeyHolder: []byte(key)},
		})
		return err
	}
	holder := string(current.Data[nodes.KeyHolder])
	if err != nil || holder == key {
		return err
	}
	if n, err := registry.Of[*corev1.Node](r).Get("", node); holder != "" && !apierrors.IsNotFound(err) && nodes.Ready(n) {
		return fmt.Errorf("node %s is running with another key: give this machine another --node-name; if it replaces that one, wait until that one is NotReady, or run `orch kubectl delete node %s`", node, node)
	}
	_, err = secrets.Mutate(ctx, metav1.NamespaceSystem, nodes.KeyName(node), func(s *corev1.Secret) error {
		s.Data, s.Annotations = map[string][]byte{nodes.KeyHolder: []byte(key)}, nil
		return nil
	})
	return err
}
