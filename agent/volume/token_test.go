package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/agent/objects/objectstest"
)

func TestTokens(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var asked *authenticationv1.TokenRequest
	var refuse error
	api := objectstest.New()
	api.Token = func(_ int, r *authenticationv1.TokenRequest) error {
		asked = r
		// As servers do for the default audience: longer than asked for.
		r.Status.ExpirationTimestamp = metav1.NewTime(now.Add(365 * 24 * time.Hour))
		if len(r.Spec.Audiences) > 0 {
			r.Status.ExpirationTimestamp = metav1.NewTime(now.Add(time.Duration(*r.Spec.ExpirationSeconds) * time.Second))
		}
		return refuse
	}
	tokens := newTokens(api, func() time.Time { return now })
	p := podWith()
	get := func(source corev1.ServiceAccountTokenProjection, want string) time.Duration {
		t.Helper()
		got, err := tokens.get(context.Background(), p, &source)
		if err != nil || got.value != want {
			t.Fatalf("got %q, %v, want %q", got.value, err, want)
		}
		return got.renew.Sub(now)
	}
	between := func(d, low, high time.Duration) {
		t.Helper()
		if d < low || d > high {
			t.Errorf("renewal in %v, want %v to %v", d, low, high)
		}
	}
	own := corev1.ServiceAccountTokenProjection{}
	between(get(own, "token-1"), 45*time.Minute, 48*time.Minute)
	if ref := asked.Spec.BoundObjectRef; ref.UID != p.UID || ref.Kind != "Pod" || *asked.Spec.ExpirationSeconds != 3600 {
		t.Errorf("asked for %v", asked.Spec)
	}
	get(own, "token-1")
	vault := corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: ptr(int64(600))}
	between(get(vault, "token-2"), 7*time.Minute, 8*time.Minute)
	long := corev1.ServiceAccountTokenProjection{Audience: "long", ExpirationSeconds: ptr(int64(7 * 24 * 3600))}
	between(get(long, "token-3"), 22*time.Hour, 24*time.Hour)

	now = now.Add(9 * time.Minute)
	refuse = errors.New("no server")
	between(get(vault, "token-2"), renewalDelay, renewalDelay) // still good for a minute
	now = now.Add(2 * time.Minute)
	if _, err := tokens.get(context.Background(), p, &vault); err == nil || err.Error() != "failed to fetch token: no server" {
		t.Errorf("expired token: %v", err)
	}
	refuse = nil
	get(vault, "token-6")
	tokens.forget(p.UID)
	get(own, "token-7")
}

// A token that is due is written without anybody asking.
func TestTokenIsRenewedInTheFile(t *testing.T) {
	w := newWorld(t)
	w.api.Token = func(n int, r *authenticationv1.TokenRequest) error {
		life := time.Second // due at once, which is after a second
		if n > 1 {
			life = time.Hour
		}
		r.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(life))
		return nil
	}
	source := corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{source}}}})
	file := filepath.Join(w.prepare(p)["v"], "token")
	w.eventually("token is renewed", func() bool {
		data, err := os.ReadFile(file)
		return err == nil && string(data) == "token-2"
	})
}
