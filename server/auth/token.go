package auth

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
)

// Lifetimes of tokens in projected volumes. Clients that read their token once
// and never again are common, so a token of the exact lifetime that admission
// asks for (warnAfterSeconds) works for a year; from then on its use is stale.
const (
	warnAfterSeconds = 60*60 + 7
	extendedLifetime = 365 * 24 * time.Hour
)

// Issuer signs service-account tokens (ES256).
type Issuer struct {
	url       string
	audiences []string
	keyID     string
	key       *ecdsa.PrivateKey
	signer    jose.Signer
	now       func() time.Time
}

// TokenHolder is the service account that a token speaks for and the objects
// whose life it is bound to; these are nil when it is not.
type TokenHolder struct {
	ServiceAccount *corev1.ServiceAccount
	Pod            *corev1.Pod
	Node           *corev1.Node // of Pod, or bound itself
	Secret         *corev1.Secret
}

// claims are those of the JWT beside the registered ones.
type claims struct {
	jwt.Claims
	Kubernetes *kubernetesClaims `json:"kubernetes.io,omitempty"`

	// Of tokens in Secrets of type kubernetes.io/service-account-token.
	LegacyNamespace string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
	LegacySecret    string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	LegacyName      string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	LegacyUID       string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
}

type kubernetesClaims struct {
	Namespace      string           `json:"namespace,omitempty"`
	Node           *reference       `json:"node,omitempty"`
	Pod            *reference       `json:"pod,omitempty"`
	Secret         *reference       `json:"secret,omitempty"`
	ServiceAccount reference        `json:"serviceaccount,omitempty"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

type reference struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// NewIssuer signs with key in the name of the cluster with this domain.
func NewIssuer(key *ecdsa.PrivateKey, clusterDomain string, now func() time.Time) (*Issuer, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("service-account key: %w", err)
	}
	sum := sha256.Sum256(der)
	i := &Issuer{
		url:   defaultAudienceForOthers + "." + clusterDomain,
		keyID: base64.RawURLEncoding.EncodeToString(sum[:]),
		key:   key,
		now:   now,
	}
	i.audiences = []string{i.url, "orch"}
	i.signer, err = jose.NewSigner(jose.SigningKey{
		Algorithm: jose.ES256,
		Key:       &jose.JSONWebKey{Key: key, KeyID: i.keyID, Algorithm: string(jose.ES256), Use: "sig"},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("service-account token signer: %w", err)
	}
	return i, nil
}

// Audiences are those that the API itself answers to, and the default of a
// TokenRequest.
func (i *Issuer) Audiences() []string { return slices.Clone(i.audiences) }

// Issue signs a token for a request that was found valid: its expiry in spec
// is set. The time given back is when the caller should have a new one.
func (i *Issuer) Issue(holder TokenHolder, spec authenticationv1.TokenRequestSpec) (string, time.Time, error) {
	now := i.now()
	seconds := int64(time.Hour / time.Second)
	if spec.ExpirationSeconds != nil {
		seconds = *spec.ExpirationSeconds
	}
	audiences := spec.Audiences
	if len(audiences) == 0 {
		audiences = i.audiences
	}
	due := now.Add(time.Duration(seconds) * time.Second)
	c := claims{
		Claims: jwt.Claims{
			Issuer:    i.url,
			Subject:   ServiceAccountUser(holder.ServiceAccount.Namespace, holder.ServiceAccount.Name),
			Audience:  audiences,
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			Expiry:    jwt.NewNumericDate(due),
			ID:        uuid.NewString(),
		},
		Kubernetes: holder.claims(),
	}
	if holder.Pod != nil && seconds == warnAfterSeconds && i.isOwn(audiences) {
		c.Kubernetes.WarnAfter = jwt.NewNumericDate(due)
		c.Expiry = jwt.NewNumericDate(now.Add(extendedLifetime))
	}
	token, err := jwt.Signed(i.signer).Claims(c).Serialize()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign service-account token: %w", err)
	}
	return token, due, nil
}

// IssueForSecret signs the token that a Secret of type
// kubernetes.io/service-account-token holds. It does not expire: it ends with
// its Secret.
func (i *Issuer) IssueForSecret(account *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	c := claims{
		Claims: jwt.Claims{
			Issuer:  legacyIssuer,
			Subject: ServiceAccountUser(account.Namespace, account.Name),
		},
		LegacyNamespace: account.Namespace,
		LegacySecret:    secret.Name,
		LegacyName:      account.Name,
		LegacyUID:       string(account.UID),
	}
	token, err := jwt.Signed(i.signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign service-account token: %w", err)
	}
	return token, nil
}

const legacyIssuer = "kubernetes/serviceaccount"

// isOwn tells whether audiences are all of this API.
func (i *Issuer) isOwn(audiences []string) bool {
	for _, a := range audiences {
		if !slices.Contains(i.audiences, a) {
			return false
		}
	}
	return true
}

func (h TokenHolder) claims() *kubernetesClaims {
	c := &kubernetesClaims{
		Namespace:      h.ServiceAccount.Namespace,
		ServiceAccount: reference{h.ServiceAccount.Name, string(h.ServiceAccount.UID)},
	}
	if h.Pod != nil {
		c.Pod = &reference{h.Pod.Name, string(h.Pod.UID)}
	}
	if h.Secret != nil {
		c.Secret = &reference{h.Secret.Name, string(h.Secret.UID)}
	}
	if h.Node != nil {
		c.Node = &reference{h.Node.Name, string(h.Node.UID)}
	}
	return c
}
