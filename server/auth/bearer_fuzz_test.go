package auth

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzSubprotocolToken reads any protocols that a browser may offer: a token that
// was taken is offered no more, and all others still are.
func FuzzSubprotocolToken(f *testing.F) {
	f.Add("base64url.bearer.authorization.k8s.io.dG9rZW4, v4.channel.k8s.io", "")
	f.Add("base64url.bearer.authorization.k8s.io.dG9rZW4=,,", "base64url.bearer.authorization.k8s.io.!")
	f.Add("v5.channel.k8s.io", "a, b")
	f.Fuzz(func(t *testing.T, first, second string) {
		header := http.Header{subprotocolHeader: {first, second}}
		token := subprotocolToken(header)
		left := strings.Join(header[subprotocolHeader], ",")
		others := false
		for _, name := range strings.Split(first+","+second, ",") {
			name = strings.TrimSpace(name)
			if strings.HasPrefix(name, subprotocolPrefix) {
				continue
			}
			others = true
			if !strings.Contains(left, name) {
				t.Errorf("%q is lost from %q", name, left)
			}
		}
		if token != "" && others && strings.Contains(left, subprotocolPrefix) {
			t.Errorf("the token %q is still offered: %q", token, left)
		}
	})
}
