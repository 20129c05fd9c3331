package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// tokens keeps the service account tokens of pods until they are to be renewed.
type tokens struct {
	client kubernetes.Interface
	now    func() time.Time

	mu    sync.Mutex
	known map[types.UID]map[tokenKey]token // guarded by mu
}

// tokenKey is what a projection asks for.
type tokenKey struct {
	audience string
	seconds  int64
}

type token struct {
	value   string
	renew   time.Time
	expires time.Time
}

func newTokens(client kubernetes.Interface, now func() time.Time) *tokens {
	return &tokens{client: client, now: now, known: map[types.UID]map[tokenKey]token{}}
}

const (
	defaultTokenSeconds = 3600
	// longestUse is after which a token is renewed however long it is valid.
	longestUse = 24 * time.Hour
	// renewalDelay is until a renewal that failed is tried again.
	renewalDelay = 30 * time.Second
)

// get gives a token of p's service account. One that cannot be renewed is good
// until it expires.
func (t *tokens) get(ctx context.Context, p *corev1.Pod, source *corev1.ServiceAccountTokenProjection) (token, error) {
	key := tokenKey{audience: source.Audience, seconds: defaultTokenSeconds}
	if source.ExpirationSeconds != nil {
		key.seconds = *source.ExpirationSeconds
	}
	t.mu.Lock()
	have, ok := t.known[p.UID][key]
	t.mu.Unlock()
	if ok && t.now().Before(have.renew) {
		return have, nil
	}
	fresh, err := t.request(ctx, p, key)
	if err != nil {
		if ok && t.now().Before(have.expires) {
			have.renew = t.now().Add(renewalDelay)
			return have, nil
		}
		return token{}, fmt.Errorf("failed to fetch token: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[p.UID] == nil {
		t.known[p.UID] = map[tokenKey]token{}
	}
	t.known[p.UID][key] = fresh
	return fresh, nil
}

func (t *tokens) request(ctx context.Context, p *corev1.Pod, key tokenKey) (token, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	if key.audience != "" {
		request.Spec.Audiences = []string{key.audience}
	}
	answer, err := t.client.CoreV1().ServiceAccounts(p.Namespace).CreateToken(ctx, p.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return token{}, err
	}
	now, expires := t.now(), answer.Status.ExpirationTimestamp.Time
	// What was asked for counts, not what is left: servers give tokens of an hour
	// a year of grace, for programs that never read the file again.
	life := min(expires.Sub(now), time.Duration(key.seconds)*time.Second)
	renewal := min(life*4/5, longestUse)
	// A little earlier, so that not all pods ask at once.
	renewal -= time.Duration(rand.Int64N(max(int64(renewal/20), 1)))
	return token{answer.Status.Token, now.Add(renewal), expires}, nil
}

func (t *tokens) forget(pod types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, pod)
}
