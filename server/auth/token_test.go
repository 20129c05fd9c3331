package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// tokenWorld is a cluster with one account and one pod, and a clock.
type tokenWorld struct {
	*memory
	now     time.Time
	issuer  *Issuer
	checker *ServiceAccountTokens
	account *corev1.ServiceAccount
	pod     *corev1.Pod
	node    *corev1.Node
}

func newTokenWorld(t testing.TB) *tokenWorld {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &tokenWorld{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.account = &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "robot", UID: "sa-1"}}
	w.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "pod-1"}}
	w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-1"}}
	w.memory = &memory{
		accounts: map[string]*corev1.ServiceAccount{"shop/robot": w.account},
		pods:     map[string]*corev1.Pod{"shop/web": w.pod},
		nodes:    map[string]*corev1.Node{"/n1": w.node},
		secrets:  map[string]*corev1.Secret{},
	}
	if w.issuer, err = NewIssuer(key, "cluster.local", func() time.Time { return w.now }); err != nil {
		t.Fatal(err)
	}
	w.checker = NewServiceAccountTokens(w.issuer, w.memory)
	return w
}

func (w *tokenWorld) issue(t testing.TB, h TokenHolder, seconds int64, audiences ...string) string {
	t.Helper()
	h.ServiceAccount = w.account
	token, due, err := w.issuer.Issue(h, authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, Audiences: audiences})
	if err != nil {
		t.Fatal(err)
	}
	if want := w.now.Add(time.Duration(seconds) * time.Second); !due.Equal(want) {
		t.Errorf("due %s, want %s", due, want)
	}
	return token
}

func TestServiceAccountToken(t *testing.T) {
	w := newTokenWorld(t)
	token := w.issue(t, TokenHolder{Pod: w.pod, Node: w.node}, 600)
	u, audiences, err := w.checker.CheckToken(t.Context(), token, nil)
	if err != nil {
		t.Fatal(err)
	}
	if u.Name != "system:serviceaccount:shop:robot" || u.UID != "sa-1" ||
		!slices.Equal(u.Groups, []string{"system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"}) {
		t.Errorf("user %+v", u)
	}
	for key, want := range map[string]string{extraPodName: "web", ExtraPodUID: "pod-1", extraNodeName: "n1", ExtraNodeUID: "node-1"} {
		if got := u.Extra[key]; len(got) != 1 || got[0] != want {
			t.Errorf("extra %s is %v", key, got)
		}
	}
	if !slices.Contains(audiences, "https://kubernetes.default.svc.cluster.local") {
		t.Errorf("audiences %v", audiences)
	}
}

func TestTokenEnds(t *testing.T) {
	gone := func(w *tokenWorld) { delete(w.pods, "shop/web") }
	for name, test := range map[string]struct {
		change func(*tokenWorld)
		want   string
	}{
		"pod deleted":   {gone, "service account token has been invalidated"},
		"pod again":     {func(w *tokenWorld) { w.pod.UID = "pod-2" }, "pod UID (pod-2) does not match service account pod ref claim (pod-1)"},
		"pod stuck":     {func(w *tokenWorld) { w.pod.DeletionTimestamp = &metav1.Time{Time: w.now.Add(-2 * time.Minute)} }, "service account token has been invalidated"},
		"account gone":  {func(w *tokenWorld) { delete(w.accounts, "shop/robot") }, `serviceaccounts "robot" not found`},
		"account again": {func(w *tokenWorld) { w.account.UID = "sa-2" }, "service account UID (sa-2) does not match claim (sa-1)"},
		"expired":       {func(w *tokenWorld) { w.now = w.now.Add(12 * time.Minute) }, "service account token has expired"},
		"clock back":    {func(w *tokenWorld) { w.now = w.now.Add(-12 * time.Minute) }, "service account token is not valid yet"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTokenWorld(t)
			token := w.issue(t, TokenHolder{Pod: w.pod}, 600)
			if _, _, err := w.checker.CheckToken(t.Context(), token, nil); err != nil {
				t.Fatal(err)
			}
			test.change(w) // the signature is remembered by now
			if _, _, err := w.checker.CheckToken(t.Context(), token, nil); err == nil || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestTokenAudience(t *testing.T) {
	w := newTokenWorld(t)
	token := w.issue(t, TokenHolder{}, 600, "vault")
	if _, _, err := w.checker.CheckToken(t.Context(), token, nil); err == nil || !strings.Contains(err.Error(), `token audiences ["vault"] is invalid`) {
		t.Errorf("the API takes a token for another: %v", err)
	}
	_, audiences, err := w.checker.CheckToken(t.Context(), token, []string{"vault", "other"})
	if err != nil || !slices.Equal(audiences, []string{"vault"}) {
		t.Errorf("audiences %v, %v", audiences, err)
	}
}

// A token of the lifetime that admission asks for keeps working for a year.
func TestTokenExtended(t *testing.T) {
	w := newTokenWorld(t)
	extended, plain := w.issue(t, TokenHolder{Pod: w.pod}, warnAfterSeconds), w.issue(t, TokenHolder{}, warnAfterSeconds)
	w.now = w.now.Add(48 * time.Hour)
	if _, _, err := w.checker.CheckToken(t.Context(), extended, nil); err != nil {
		t.Error(err)
	}
	if _, _, err := w.checker.CheckToken(t.Context(), plain, nil); err == nil {
		t.Error("a token that is not of a pod was extended")
	}
}

func TestForeignTokens(t *testing.T) {
	w, other := newTokenWorld(t), newTokenWorld(t)
	forged := other.issue(t, TokenHolder{}, 600)
	if u, _, err := w.checker.CheckToken(t.Context(), forged, nil); err == nil || u != nil {
		t.Errorf("forged token gives %v, %v", u, err)
	}
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://kubernetes.default.svc.cluster.local"}`)) + "."
	for _, token := range []string{"", "abc", "a.b.c", unsigned} {
		if u, _, _ := w.checker.CheckToken(t.Context(), token, nil); u != nil {
			t.Errorf("token %q gives %v", token, u)
		}
	}
}

func TestSecretToken(t *testing.T) {
	w := newTokenWorld(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "robot-token"}}
	token, err := w.issuer.IssueForSecret(w.account, secret)
	if err != nil {
		t.Fatal(err)
	}
	secret.Data = map[string][]byte{"token": []byte(token)}
	w.secrets["shop/robot-token"] = secret
	if u, _, err := w.checker.CheckToken(t.Context(), token, nil); err != nil || u.Name != "system:serviceaccount:shop:robot" {
		t.Errorf("%v, %v", u, err)
	}
	delete(w.secrets, "shop/robot-token")
	if _, _, err := w.checker.CheckToken(t.Context(), token, nil); err == nil {
		t.Error("token outlives its secret")
	}
}

func TestBootstrapToken(t *testing.T) {
	w := newTokenWorld(t)
	secret := func(change func(map[string][]byte)) *corev1.Secret {
		data := map[string][]byte{
			"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
			"auth-extra-groups": []byte("system:bootstrappers:orch"), "expiration": []byte(w.now.Add(time.Hour).Format(time.RFC3339)),
		}
		change(data)
		return &corev1.Secret{Type: corev1.SecretTypeBootstrapToken, Data: data}
	}
	checker := BootstrapTokens{Objects: w.memory, Now: func() time.Time { return w.now }}
	for name, test := range map[string]struct {
		change func(map[string][]byte)
		ok     bool
	}{
		"good":         {func(map[string][]byte) {}, true},
		"wrong secret": {func(d map[string][]byte) { d["token-secret"] = []byte("0123456789abcdee") }, false},
		"expired":      {func(d map[string][]byte) { d["expiration"] = []byte(w.now.Format(time.RFC3339)) }, false},
		"no usage":     {func(d map[string][]byte) { delete(d, "usage-bootstrap-authentication") }, false},
		"bad group":    {func(d map[string][]byte) { d["auth-extra-groups"] = []byte("system:masters") }, false},
	} {
		w.secrets["kube-system/bootstrap-token-abcdef"] = secret(test.change)
		u, _, err := checker.CheckToken(t.Context(), "abcdef.0123456789abcdef", nil)
		if err != nil || (u != nil) != test.ok {
			t.Errorf("%s: %v, %v", name, u, err)
		}
		if u != nil && (u.Name != "system:bootstrap:abcdef" || !slices.Contains(u.Groups, "system:bootstrappers:orch")) {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

func TestBearerToken(t *testing.T) {
	w := newTokenWorld(t)
	token := w.issue(t, TokenHolder{}, 600)
	bearer := Authenticators{BearerTokens{w.checker}, Anonymous{}}
	ask := func(path string, header http.Header) (*User, error) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header = header
		return bearer.Authenticate(r)
	}
	if u, err := ask("/api", http.Header{"Authorization": {"Bearer " + token}}); err != nil || u.UID != "sa-1" {
		t.Errorf("header: %v, %v", u, err)
	}
	ws := http.Header{"Sec-Websocket-Protocol": {"base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token)) + ", v5.channel.k8s.io"}}
	if u, err := ask("/api", ws); err != nil || u.UID != "sa-1" {
		t.Errorf("subprotocol: %v, %v", u, err)
	}
	if got := ws.Get("Sec-Websocket-Protocol"); got != "v5.channel.k8s.io" {
		t.Errorf("subprotocols left: %q", got)
	}
	if _, err := ask("/readyz", http.Header{"Authorization": {"Bearer wrong"}}); err == nil {
		t.Error("a wrong token is not the same as none")
	}
	if u, err := ask("/readyz", http.Header{}); err != nil || u.Name != UserAnonymous {
		t.Errorf("anonymous health: %v, %v", u, err)
	}
	if u, err := ask("/api/v1/pods", http.Header{}); u != nil || err != nil {
		t.Errorf("anonymous: %v, %v", u, err)
	}
}

// A stranger verifies a token with nothing but the published keys.
func TestOpenID(t *testing.T) {
	w := newTokenWorld(t)
	handler, err := w.issuer.OpenIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, OpenIDKeysPath, nil))
	keys := jose.JSONWebKeySet{}
	if err := json.NewDecoder(answer.Body).Decode(&keys); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(w.issue(t, TokenHolder{}, 600), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	found := keys.Key(parsed.Headers[0].KeyID)
	if len(found) != 1 {
		t.Fatalf("key %q is not in %v", parsed.Headers[0].KeyID, keys)
	}
	if err := parsed.Claims(found[0], &claims{}); err != nil {
		t.Error(err)
	}
}

func FuzzCheckToken(f *testing.F) {
	w := newTokenWorld(f)
	f.Add(w.issue(f, TokenHolder{Pod: w.pod}, 600))
	f.Add("abcdef.0123456789abcdef")
	f.Fuzz(func(t *testing.T, token string) {
		u, _, err := BearerTokens{w.checker, BootstrapTokens{Objects: w.memory, Now: time.Now}}.CheckToken(t.Context(), token, nil)
		if (u == nil) == (err == nil) {
			t.Errorf("token %q: %v, %v", token, u, err)
		}
	})
}

func BenchmarkCheckToken(b *testing.B) {
	w := newTokenWorld(b)
	token, _, _ := w.issuer.Issue(TokenHolder{ServiceAccount: w.account, Pod: w.pod}, authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](600)})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := w.checker.CheckToken(b.Context(), token, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// A bootstrap token is for the API: who else is shown one cannot take it for
// the bearer's word.
func TestBootstrapTokenAudience(t *testing.T) {
	w := newTokenWorld(t)
	w.secrets["kube-system/bootstrap-token-abcdef"] = &corev1.Secret{Type: corev1.SecretTypeBootstrapToken, Data: map[string][]byte{
		"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
	}}
	checker := BootstrapTokens{Objects: w.memory, Now: func() time.Time { return w.now }, Audiences: []string{"https://api", "orch"}}
	for _, test := range []struct{ asked, valid []string }{
		{nil, []string{"https://api", "orch"}}, {[]string{"orch", "vault"}, []string{"orch"}}, {[]string{"vault"}, nil},
	} {
		u, valid, err := checker.CheckToken(t.Context(), "abcdef.0123456789abcdef", test.asked)
		if err != nil || (u != nil) != (test.valid != nil) || !slices.Equal(valid, test.valid) {
			t.Errorf("for %v: %v, %v, %v", test.asked, u, valid, err)
		}
	}
}
