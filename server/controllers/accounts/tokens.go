package accounts

import (
	"bytes"
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// SecretTokens signs the token that a Secret holds for its service account.
type SecretTokens interface {
	IssueForSecret(account *corev1.ServiceAccount, secret *corev1.Secret) (string, error)
}

// Tokens fills in Secrets of type kubernetes.io/service-account-token, and
// deletes those whose account has gone.
func Tokens(r *registry.Registry, issuer SecretTokens, bundle []byte) *loop.Controller {
	accounts, secrets := registry.Of[*corev1.ServiceAccount](r), registry.Of[*corev1.Secret](r)
	return &loop.Controller{
		Name:    "serviceaccount-token",
		Workers: 2,
		Sources: []loop.Source{
			loop.Changes(r, func(_, s *corev1.Secret, deleted bool) []loop.Key {
				if deleted || !holdsToken(s) {
					return nil
				}
				return []loop.Key{loop.KeyOf(s)}
			}),
			loop.Changes(r, func(old, a *corev1.ServiceAccount, deleted bool) (keys []loop.Key) {
				if old != nil && !deleted {
					return nil
				}
				for _, s := range secrets.List(a.Namespace, nil) {
					if holdsToken(s) && s.Annotations[corev1.ServiceAccountNameKey] == a.Name {
						keys = append(keys, loop.KeyOf(s))
					}
				}
				return keys
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			s, err := secrets.Get(key.Namespace, key.Name)
			if err != nil || !holdsToken(s) {
				return 0, nil
			}
			account, err := accounts.Get(s.Namespace, s.Annotations[corev1.ServiceAccountNameKey])
			if uid := s.Annotations[corev1.ServiceAccountUIDKey]; err != nil || uid != "" && uid != string(account.UID) {
				err := secrets.Delete(ctx, s.Namespace, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
				return 0, ignoreLateComer(err)
			}
			filled, err := fill(s, account, issuer, bundle)
			if err != nil || filled == nil {
				return 0, err
			}
			_, err = secrets.Update(ctx, filled)
			return 0, ignoreLateComer(err)
		},
	}
}

func holdsToken(s *corev1.Secret) bool {
	return s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] != ""
}

// fill gives the secret with what it lacks, nil when that is nothing.
func fill(s *corev1.Secret, account *corev1.ServiceAccount, issuer SecretTokens, bundle []byte) (*corev1.Secret, error) {
	hasCA := bytes.Equal(s.Data[corev1.ServiceAccountRootCAKey], bundle)
	hasNamespace := len(s.Data[corev1.ServiceAccountNamespaceKey]) > 0
	hasToken := len(s.Data[corev1.ServiceAccountTokenKey]) > 0
	if hasCA && hasNamespace && hasToken {
		return nil, nil
	}
	s = s.DeepCopy()
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[corev1.ServiceAccountRootCAKey] = bundle
	if !hasNamespace {
		s.Data[corev1.ServiceAccountNamespaceKey] = []byte(s.Namespace)
	}
	if !hasToken {
		token, err := issuer.IssueForSecret(account, s)
		if err != nil {
			return nil, err
		}
		s.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	s.Annotations[corev1.ServiceAccountUIDKey] = string(account.UID)
	return s, nil
}
