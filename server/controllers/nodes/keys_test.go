package nodes

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestKeyFate(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	held := map[string][]byte{KeyHolder: []byte("k")}
	lost := map[string][]byte{KeyRevoked: []byte("k")}
	known := map[string]string{registered: "true"}
	for _, tt := range []struct {
		name        string
		data        map[string][]byte
		annotations map[string]string
		nodeExists  bool
		want        fate
		wait        time.Duration
	}{
		{"joined, not registered yet", held, nil, false, keep, 0},
		{"registered", held, nil, true, note, 0},
		{"known", held, known, true, keep, 0},
		{"deleted", held, known, false, revoke, 0},
		{"revoked lately", lost, map[string]string{revokedAt: now.Add(-time.Hour).Format(time.RFC3339)}, false, keep, revokedFor - time.Hour},
		{"revoked, and its certificates are over", lost, map[string]string{revokedAt: now.Add(-revokedFor).Format(time.RFC3339)}, false, forget, 0},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: tt.annotations}, Data: tt.data}
		if f, wait := keyFate(s, tt.nodeExists, now); f != tt.want || wait != tt.wait {
			t.Errorf("%s: got %v after %s, want %v after %s", tt.name, f, wait, tt.want, tt.wait)
		}
	}
}
