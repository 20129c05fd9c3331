package auth

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

// Paths of the documents with which others verify service-account tokens
// (OpenID Connect Discovery 1.0).
const (
	OpenIDConfigPath = "/.well-known/openid-configuration"
	OpenIDKeysPath   = "/openid/v1/jwks"
)

// OpenIDConfig serves the issuer's configuration. address is where clients
// outside the cluster reach the API ("203.0.113.5:6443").
func (i *Issuer) OpenIDConfig(address string) (http.Handler, error) {
	document, err := json.Marshal(struct {
		Issuer        string   `json:"issuer"`
		JWKSURI       string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{i.url, "https://" + address + OpenIDKeysPath, []string{"id_token"}, []string{"public"}, []string{string(jose.ES256)}})
	if err != nil {
		return nil, fmt.Errorf("openid configuration: %w", err)
	}
	return staticDocument("application/json", document), nil
}

// OpenIDKeys serves the public keys that verify tokens.
func (i *Issuer) OpenIDKeys() (http.Handler, error) {
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: i.key.Public(), KeyID: i.keyID, Algorithm: string(jose.ES256), Use: "sig"},
	}})
	if err != nil {
		return nil, fmt.Errorf("openid keys: %w", err)
	}
	return staticDocument("application/jwk-set+json", keys), nil
}

func staticDocument(mediaType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(body) // the client went away
	})
}
