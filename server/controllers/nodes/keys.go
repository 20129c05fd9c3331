package nodes

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// KeyType is of the Secret that says which key a node's name belongs to.
const KeyType corev1.SecretType = "orch.io/node-key"

// What such a Secret holds, and how its name begins.
const (
	KeyHolder  = "sha256"  // digest of the key that has the name
	KeyRevoked = "revoked" // digest of the key that lost it
	keyPrefix  = "node-key."
)

// KeyName names the Secret, in kube-system.
func KeyName(node string) string { return keyPrefix + node }

// Ready tells whether the node is.
func Ready(n *corev1.Node) bool {
	return n != nil && condition(n, corev1.NodeReady).Status == corev1.ConditionTrue
}

// revokedFor is how long a revoked key is remembered: as long as certificates
// of nodes are good.
const revokedFor = 366 * 24 * time.Hour

// What the key's Secret remembers.
const (
	registered = "orch.io/registered" // annotation: the Node exists, or did
	revokedAt  = "orch.io/revoked-at" // annotation, RFC 3339
)

// Keys revokes the key of a node that is deleted, and forgets it when its
// certificates are over.
func Keys(r *registry.Registry, now func() time.Time) *loop.Controller {
	secrets, nodes := registry.Of[*corev1.Secret](r), registry.Of[*corev1.Node](r)
	return &loop.Controller{
		Name: "node-keys",
		Sources: []loop.Source{
			loop.Changes(r, func(old, n *corev1.Node, deleted bool) []loop.Key {
				if old != nil && !deleted {
					return nil
				}
				return []loop.Key{{Namespace: metav1.NamespaceSystem, Name: KeyName(n.Name)}}
			}),
			loop.Changes(r, func(_, s *corev1.Secret, deleted bool) []loop.Key {
				if deleted || s.Type != KeyType {
					return nil
				}
				return []loop.Key{loop.KeyOf(s)}
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			secret, err := secrets.Get(key.Namespace, key.Name)
			if err != nil || secret.Type != KeyType {
				return 0, nil
			}
			_, err = nodes.Get("", strings.TrimPrefix(key.Name, keyPrefix))
			next, wait := keyFate(secret, err == nil, now())
			switch next {
			case keep:
				return wait, nil
			case forget:
				return 0, ignoreNotFound(secrets.Delete(ctx, key.Namespace, key.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}}))
			}
			_, err = secrets.Mutate(ctx, key.Namespace, key.Name, func(s *corev1.Secret) error {
				if next == note {
					metav1.SetMetaDataAnnotation(&s.ObjectMeta, registered, "true")
					return nil
				}
				s.Data = map[string][]byte{KeyRevoked: s.Data[KeyHolder]}
				s.Annotations = map[string]string{revokedAt: now().UTC().Format(time.RFC3339)}
				return nil
			})
			return 0, ignoreNotFound(err)
		},
	}
}

// fate is what becomes of a key.
type fate int

const (
	keep fate = iota
	note      // that its Node exists
	revoke
	forget
)

// keyFate decides on a node's key. One whose Node was never registered waits
// for that; a revoked one is looked at again after wait.
func keyFate(s *corev1.Secret, nodeExists bool, now time.Time) (f fate, wait time.Duration) {
	_, known := s.Annotations[registered]
	switch held := len(s.Data[KeyHolder]) > 0; {
	case held && nodeExists && !known:
		return note, 0
	case held && !nodeExists && known:
		return revoke, 0
	case held:
		return keep, 0
	}
	since, err := time.Parse(time.RFC3339, s.Annotations[revokedAt])
	if err != nil {
		since = s.CreationTimestamp.Time
	}
	if wait = since.Add(revokedFor).Sub(now); wait <= 0 {
		return forget, 0
	}
	return keep, wait
}
