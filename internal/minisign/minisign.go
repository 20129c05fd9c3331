// Package minisign checks signatures of the program of that name; see
// https://jedisct1.github.io/minisign/#signature-format.
package minisign

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// Lengths in bytes: a key is algorithm, key number and Ed25519 key; a signature is
// algorithm, key number and Ed25519 signature.
const (
	keyLength       = 2 + 8 + ed25519.PublicKeySize
	signatureLength = 2 + 8 + ed25519.SignatureSize
)

// Verify checks that message was signed with the public key. signature is the
// content of the .minisig file.
func Verify(publicKey string, message, signature []byte) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(publicKey))
	if err != nil || len(key) != keyLength || string(key[:2]) != "Ed" {
		return errors.New("not a public key of minisign (the second line of minisign.pub)")
	}
	lines := strings.Split(strings.ReplaceAll(string(signature), "\r\n", "\n"), "\n")
	if len(lines) < 4 {
		return errors.New("not a signature of minisign: it has four lines")
	}
	sig, err := base64.StdEncoding.DecodeString(lines[1])
	if err != nil || len(sig) != signatureLength {
		return errors.New("not a signature of minisign: its second line is damaged")
	}
	comment, trusted := strings.CutPrefix(lines[2], "trusted comment: ")
	global, err := base64.StdEncoding.DecodeString(lines[3])
	if err != nil || !trusted || len(global) != ed25519.SignatureSize {
		return errors.New("not a signature of minisign: its last lines are damaged")
	}
	if string(sig[2:10]) != string(key[2:10]) {
		return fmt.Errorf("signed with another key, number %X", sig[2:10])
	}
	switch string(sig[:2]) {
	case "Ed": // the message itself, as old versions do
	case "ED":
		sum := blake2b.Sum512(message)
		message = sum[:]
	default:
		return fmt.Errorf("signed in a way that is not known: %q", sig[:2])
	}
	public := ed25519.PublicKey(key[10:])
	if !ed25519.Verify(public, message, sig[10:]) || !ed25519.Verify(public, append(sig[10:], comment...), global) {
		return errors.New("the signature is wrong: the file was changed after it was signed")
	}
	return nil
}
