package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Objects are what tokens and nodes are checked against, as they are now. An
// object that does not exist is an error.
type Objects interface {
	ServiceAccount(namespace, name string) (*corev1.ServiceAccount, error)
	Secret(namespace, name string) (*corev1.Secret, error)
	Pod(namespace, name string) (*corev1.Pod, error)
	Node(name string) (*corev1.Node, error)
	PersistentVolumeClaim(namespace, name string) (*corev1.PersistentVolumeClaim, error)
	PersistentVolume(name string) (*corev1.PersistentVolume, error)
	// ResourceSliceNode is the node that a slice of devices is of, "" when of none.
	ResourceSliceNode(name string) (string, error)
}

// checkedTokens is how many tokens are remembered as properly signed.
const checkedTokens = 4096

// ServiceAccountTokens checks the tokens of an Issuer. A signature is verified
// once per token, everything that can change (dates, the objects it is bound
// to) at every use.
type ServiceAccountTokens struct {
	issuer  *Issuer
	objects Objects

	mu     sync.Mutex                    // guards signed
	signed map[[sha256.Size]byte]*claims // by the token's hash; read-only values
}

// NewServiceAccountTokens checks tokens of issuer against objects.
func NewServiceAccountTokens(issuer *Issuer, objects Objects) *ServiceAccountTokens {
	return &ServiceAccountTokens{issuer: issuer, objects: objects, signed: make(map[[sha256.Size]byte]*claims)}
}

// CheckToken implements TokenChecker.
func (t *ServiceAccountTokens) CheckToken(_ context.Context, token string, audiences []string) (*User, []string, error) {
	c, err := t.claimsOf(token)
	if c == nil || err != nil {
		return nil, nil, err
	}
	valid, err := t.audiencesOf(c, audiences)
	if err != nil {
		return nil, nil, err
	}
	if c.Issuer == legacyIssuer {
		u, err := t.checkLegacy(c, token)
		return u, valid, err
	}
	u, err := t.checkBound(c)
	return u, valid, err
}

// claimsOf gives the claims of a token with a good signature; nil when it is
// not one of ours at all.
func (t *ServiceAccountTokens) claimsOf(token string) (*claims, error) {
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	known := t.signed[hash]
	t.mu.Unlock()
	if known != nil {
		return known, nil
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, nil
	}
	c := &claims{}
	if err := parsed.UnsafeClaimsWithoutVerification(c); err != nil || c.Issuer != t.issuer.url && c.Issuer != legacyIssuer {
		return nil, nil
	}
	c = &claims{}
	if err := parsed.Claims(t.issuer.key.Public(), c); err != nil {
		return nil, errors.New("service account token has an invalid signature")
	}
	t.remember(hash, c)
	return c, nil
}

func (t *ServiceAccountTokens) remember(hash [sha256.Size]byte, c *claims) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.signed) >= checkedTokens {
		clear(t.signed) // the tokens in use come back at once
	}
	t.signed[hash] = c
}

// audiencesOf are those of wanted (none: the API's own) for which the token is good.
func (t *ServiceAccountTokens) audiencesOf(c *claims, wanted []string) ([]string, error) {
	if len(wanted) == 0 {
		wanted = t.issuer.audiences
	}
	given := []string(c.Audience)
	if len(given) == 0 {
		given = t.issuer.audiences
	}
	var valid []string
	for _, a := range given {
		if slices.Contains(wanted, a) {
			valid = append(valid, a)
		}
	}
	if len(valid) == 0 {
		return nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", given, wanted)
	}
	return valid, nil
}

var errInvalidated = errors.New("service account token has been invalidated")

// checkBound validates a token made by TokenRequest: its dates and that
// everything it is bound to still exists.
func (t *ServiceAccountTokens) checkBound(c *claims) (*User, error) {
	now := t.issuer.now()
	if err := checkDates(c, now); err != nil {
		return nil, err
	}
	k := c.Kubernetes
	if k == nil {
		return nil, errors.New("service account token claims could not be validated")
	}
	account, err := t.objects.ServiceAccount(k.Namespace, k.ServiceAccount.Name)
	if err != nil {
		return nil, err
	}
	if string(account.UID) != k.ServiceAccount.UID {
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", account.UID, k.ServiceAccount.UID)
	}
	if isGone(account, now) {
		return nil, fmt.Errorf("service account %s/%s has been deleted", k.Namespace, account.Name)
	}
	if err := t.checkReferences(k, now); err != nil {
		return nil, err
	}
	return boundUser(c), nil
}

func checkDates(c *claims, now time.Time) error {
	err := c.ValidateWithLeeway(jwt.Expected{Time: now}, jwt.DefaultLeeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return errors.New("service account token has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return errors.New("service account token is not valid yet")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return errors.New("service account token is issued in the future")
	}
	return err
}

func (t *ServiceAccountTokens) checkReferences(k *kubernetesClaims, now time.Time) error {
	if k.Secret != nil {
		secret, err := t.objects.Secret(k.Namespace, k.Secret.Name)
		if err := checkReference("secret", secret, err, k.Secret, now); err != nil {
			return err
		}
	}
	if k.Pod != nil {
		pod, err := t.objects.Pod(k.Namespace, k.Pod.Name)
		// The node of a pod-bound token is information, not a bond.
		return checkReference("pod", pod, err, k.Pod, now)
	}
	if k.Node != nil {
		node, err := t.objects.Node(k.Node.Name)
		return checkReference("node", node, err, k.Node, now)
	}
	return nil
}

func checkReference(kind string, obj metav1.Object, err error, ref *reference, now time.Time) error {
	if err != nil {
		return errInvalidated
	}
	if string(obj.GetUID()) != ref.UID {
		return fmt.Errorf("%s UID (%s) does not match service account %s ref claim (%s)", kind, obj.GetUID(), kind, ref.UID)
	}
	if isGone(obj, now) {
		return errInvalidated
	}
	return nil
}

// isGone is true once obj's deletion time is past. A pod's lies at the end of
// its grace period, so that it can use its token while it shuts down.
func isGone(obj metav1.Object, now time.Time) bool {
	deleted := obj.GetDeletionTimestamp()
	return deleted != nil && deleted.Time.Before(now.Add(-jwt.DefaultLeeway))
}

func boundUser(c *claims) *User {
	k := c.Kubernetes
	extra := make(map[string][]string, 5)
	set := func(key, value string) {
		if value != "" {
			extra[key] = []string{value}
		}
	}
	if c.ID != "" {
		set(extraCredentialID, "JTI="+c.ID)
	}
	if k.Pod != nil {
		set(extraPodName, k.Pod.Name)
		set(ExtraPodUID, k.Pod.UID)
	}
	if k.Node != nil {
		set(extraNodeName, k.Node.Name)
		set(ExtraNodeUID, k.Node.UID)
	}
	u := ServiceAccountIdentity(k.Namespace, k.ServiceAccount.Name, k.ServiceAccount.UID)
	u.Extra = extra
	return u
}

// ServiceAccountIdentity is the user that a service account acts as.
func ServiceAccountIdentity(namespace, name, uid string) *User {
	return &User{
		Name:   ServiceAccountUser(namespace, name),
		UID:    uid,
		Groups: []string{GroupServiceAccounts, serviceAccountsNSPrefix + namespace, GroupAuthenticated},
	}
}

// checkLegacy validates the token of a Secret: the Secret must still hold it.
func (t *ServiceAccountTokens) checkLegacy(c *claims, token string) (*User, error) {
	if c.LegacyNamespace == "" || c.LegacySecret == "" || c.LegacyName == "" || c.LegacyUID == "" ||
		c.Subject != ServiceAccountUser(c.LegacyNamespace, c.LegacyName) {
		return nil, errors.New("sub claim is invalid")
	}
	secret, err := t.objects.Secret(c.LegacyNamespace, c.LegacySecret)
	if err != nil || secret.DeletionTimestamp != nil {
		return nil, errors.New("Token has been invalidated")
	}
	if subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(token)) == 0 {
		return nil, errors.New("Token does not match server's copy")
	}
	account, err := t.objects.ServiceAccount(c.LegacyNamespace, c.LegacyName)
	if err != nil {
		return nil, err
	}
	if account.DeletionTimestamp != nil {
		return nil, fmt.Errorf("ServiceAccount %s/%s has been deleted", account.Namespace, account.Name)
	}
	if string(account.UID) != c.LegacyUID {
		return nil, fmt.Errorf("ServiceAccount UID (%s) does not match claim (%s)", account.UID, c.LegacyUID)
	}
	return ServiceAccountIdentity(account.Namespace, account.Name, c.LegacyUID), nil
}

// BootstrapTokens checks "id.secret" tokens against Secrets of type
// bootstrap.kubernetes.io/token in kube-system.
type BootstrapTokens struct {
	Objects   Objects
	Now       func() time.Time
	Audiences []string // of the API, for which alone these tokens are
}

// CheckToken implements TokenChecker.
func (b BootstrapTokens) CheckToken(_ context.Context, token string, audiences []string) (*User, []string, error) {
	id, secretPart, ok := strings.Cut(token, ".")
	if !ok || !isTokenPart(id, 6) || !isTokenPart(secretPart, 16) {
		return nil, nil, nil
	}
	secret, err := b.Objects.Secret(metav1.NamespaceSystem, "bootstrap-token-"+id)
	if err != nil || secret.DeletionTimestamp != nil || secret.Type != corev1.SecretTypeBootstrapToken {
		return nil, nil, nil
	}
	data := func(key string) string { return string(secret.Data[key]) }
	if subtle.ConstantTimeCompare([]byte(data("token-secret")), []byte(secretPart)) != 1 ||
		data("token-id") != id || data("usage-bootstrap-authentication") != "true" {
		return nil, nil, nil
	}
	if expiry := data("expiration"); expiry != "" {
		if end, err := time.Parse(time.RFC3339, expiry); err != nil || !b.Now().Before(end) {
			return nil, nil, nil
		}
	}
	groups, ok := bootstrapGroups(data("auth-extra-groups"))
	if !ok {
		return nil, nil, nil
	}
	valid := b.Audiences
	if len(audiences) > 0 {
		valid = slices.DeleteFunc(slices.Clone(b.Audiences), func(a string) bool { return !slices.Contains(audiences, a) })
		if len(valid) == 0 {
			return nil, nil, nil // shown to somebody for whom it is not meant
		}
	}
	return &User{Name: BootstrapUser(id), Groups: groups}, valid, nil
}

func isTokenPart(s string, length int) bool {
	return len(s) == length && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// bootstrapGroups refuses a list that would lend a token other powers.
func bootstrapGroups(extra string) ([]string, bool) {
	set := map[string]bool{GroupBootstrappers: true}
	for _, g := range strings.Split(extra, ",") {
		if g == "" {
			continue
		}
		if !strings.HasPrefix(g, GroupBootstrappers+":") {
			return nil, false
		}
		set[g] = true
	}
	return append(slices.Sorted(maps.Keys(set)), GroupAuthenticated), true
}
