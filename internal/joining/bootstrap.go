package joining

import (
	"crypto/rand"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NewBootstrapToken makes a join token that ends by itself, and the Secret that
// makes servers accept it. description may be empty; ttl 0 means for ever.
func NewBootstrapToken(caHash, description string, ttl time.Duration, now time.Time) (Token, *corev1.Secret) {
	id, secret := randomText(6), randomText(16)
	data := map[string][]byte{
		"token-id":                       []byte(id),
		"token-secret":                   []byte(secret),
		"usage-bootstrap-authentication": []byte("true"),
	}
	if description != "" {
		data["description"] = []byte(description)
	}
	if ttl > 0 {
		data["expiration"] = []byte(now.Add(ttl).UTC().Format(time.RFC3339))
	}
	return Token{CAHash: caHash, User: UserNode, Secret: id + "." + secret}, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "bootstrap-token-" + id},
		Type:       corev1.SecretTypeBootstrapToken,
		Data:       data,
	}
}

// randomText has about 5 bits in each of its characters.
func randomText(length int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567" // 32 of them: no bias
	text := make([]byte, length)
	rand.Read(text) // never fails
	for i := range text {
		text[i] = alphabet[text[i]%32]
	}
	return string(text)
}
