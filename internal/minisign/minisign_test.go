package minisign

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// sign does as minisign -S.
func sign(private ed25519.PrivateKey, message []byte, algorithm string) string {
	if algorithm == "ED" {
		sum := blake2b.Sum512(message)
		message = sum[:]
	}
	sig := ed25519.Sign(private, message)
	encode := base64.StdEncoding.EncodeToString
	return "untrusted comment: a\n" + encode(append([]byte(algorithm+"12345678"), sig...)) + "\ntrusted comment: b\n" +
		encode(ed25519.Sign(private, append(sig, 'b'))) + "\n"
}

func TestVerify(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(append([]byte("Ed12345678"), public...))
	good := sign(private, []byte("text"), "ED")
	if err := Verify(key+"\n", []byte("text"), []byte(good)); err != nil {
		t.Error(err)
	}
	if err := Verify(key, []byte("text"), []byte(sign(private, []byte("text"), "Ed"))); err != nil {
		t.Errorf("without prehashing: %v", err)
	}
	other := base64.StdEncoding.EncodeToString(append([]byte("Ed87654321"), public...))
	for name, test := range map[string]struct{ key, message, signature, want string }{
		"changed text":     {key, "texts", good, "the signature is wrong"},
		"changed comment":  {key, "text", strings.Replace(good, "trusted comment: b", "trusted comment: c", 1), "the signature is wrong"},
		"another key":      {other, "text", good, "another key"},
		"no key":           {"RWQ", "text", good, "not a public key"},
		"empty":            {key, "text", "", "four lines"},
		"damaged":          {key, "text", strings.Replace(good, "\n", "\n!", 1), "second line"},
		"without comment":  {key, "text", strings.Replace(good, "trusted comment: b", "", 1), "damaged"},
		"unknown way":      {key, "text", sign(private, []byte("text"), "XX"), "not known"},
		"trusted is empty": {key, "text", strings.Replace(good, "\ntrusted comment: b", "\ntrusted comment: ", 1), "the signature is wrong"},
	} {
		if err := Verify(test.key, []byte(test.message), []byte(test.signature)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(append([]byte("Ed12345678"), public...))
	good := sign(private, []byte("text"), "ED")
	f.Add([]byte(good))
	f.Add([]byte("\n\n\n\n"))
	f.Fuzz(func(t *testing.T, signature []byte) {
		// Nothing but what the key signed, give or take the comment nobody vouches for.
		if Verify(key, []byte("texts"), signature) == nil {
			t.Error("a signature that nobody made passes")
		}
	})
}
