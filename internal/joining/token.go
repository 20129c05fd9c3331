// Package joining is how a machine becomes a member of a cluster: the join
// token, the request that a new node makes, and the credentials it keeps.
package joining

import (
	"encoding/hex"
	"errors"
	"strings"
)

// Users that a token can stand for.
const (
	UserServer = "server"
	UserNode   = "node"
)

const tokenPrefix = "K10"

// Token is a join token: K10<sha256 of the CA certificate>::<user>:<secret>. A
// bare secret has neither hash nor user.
type Token struct {
	CAHash, User, Secret string
}

// ErrToken says that a text is no join token.
var ErrToken = errors.New("not a join token: it must look like K10<CA hash>::<user>:<secret>, or be a bare secret without \"::\"")

// ParseToken reads a token or a bare secret.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	head, tail, full := strings.Cut(text, "::")
	if !full {
		if text == "" || strings.ContainsAny(text, " \t\r\n") {
			return Token{}, ErrToken
		}
		return Token{Secret: text}, nil
	}
	hash, ok := strings.CutPrefix(head, tokenPrefix)
	if raw, err := hex.DecodeString(hash); !ok || err != nil || len(raw) != 32 {
		return Token{}, ErrToken
	}
	user, secret, ok := strings.Cut(tail, ":")
	if !ok || user == "" || secret == "" || strings.ContainsAny(tail, " \t\r\n") {
		return Token{}, ErrToken
	}
	return Token{CAHash: strings.ToLower(hash), User: user, Secret: secret}, nil
}

// String gives the token in the form that ParseToken reads.
func (t Token) String() string {
	if t.CAHash == "" {
		return t.Secret
	}
	return tokenPrefix + t.CAHash + "::" + t.User + ":" + t.Secret
}
