package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// TokenChecker knows one kind of bearer token. It gives the user and those of
// audiences (none: the API's own) for which the token is good; a nil user
// without an error means that the token is of another kind.
type TokenChecker interface {
	CheckToken(ctx context.Context, token string, audiences []string) (*User, []string, error)
}

// BearerTokens authenticates by Authorization header, asking checkers in order.
type BearerTokens []TokenChecker

// CheckToken implements TokenChecker; a token that nobody knows is an error.
func (b BearerTokens) CheckToken(ctx context.Context, token string, audiences []string) (*User, []string, error) {
	for _, checker := range b {
		if u, valid, err := checker.CheckToken(ctx, token, audiences); u != nil || err != nil {
			return u, valid, err
		}
	}
	return nil, nil, errors.New("invalid bearer token")
}

// Authenticate implements Authenticator.
func (b BearerTokens) Authenticate(r *http.Request) (*User, error) {
	token := bearerToken(r)
	if token == "" {
		return nil, nil
	}
	u, _, err := b.CheckToken(r.Context(), token, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	return u, nil
}

// bearerToken is the token of the Authorization header, or of the WebSocket
// subprotocol that browsers have to use instead.
func bearerToken(r *http.Request) string {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, token, _ := strings.Cut(header, " ")
		if strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	return subprotocolToken(r.Header)
}

const (
	subprotocolHeader = "Sec-Websocket-Protocol"
	subprotocolPrefix = "base64url.bearer.authorization.k8s.io."
)

// subprotocolToken takes the token out of header, for the secret must not be
// chosen as the connection's protocol and sent back.
func subprotocolToken(header http.Header) string {
	if len(header[subprotocolHeader]) == 0 {
		return ""
	}
	var token string
	var others []string
	for _, name := range strings.Split(strings.Join(header[subprotocolHeader], ","), ",") {
		name = strings.TrimSpace(name)
		encoded, ok := strings.CutPrefix(name, subprotocolPrefix)
		if !ok {
			others = append(others, name)
			continue
		}
		if raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(encoded, "=")); err == nil {
			token = string(raw)
		}
	}
	if token != "" && len(others) > 0 {
		header[subprotocolHeader] = slices.Clip([]string{strings.Join(others, ", ")})
	}
	return token
}
