package pki

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// A sealed value is magic, key id (4 bytes, big endian), nonce and ciphertext.
// The magic cannot begin JSON, YAML or Kubernetes protobuf ("k8s\0"), so that
// values written before encryption was on stay readable.
const (
	sealMagic  = "\x00orch1"
	sealHeader = len(sealMagic) + 4
)

// ErrUnknownKey says that a value was sealed with a key that the key file does
// not hold.
var ErrUnknownKey = errors.New("pki: value is encrypted with a key that is not in the key file")

// Keyring seals values at rest with AES-256-GCM. New values take the first
// key; old ones open with the key they name, so that keys can be rotated.
type Keyring struct {
	first uint32
	keys  map[uint32]cipher.AEAD
}

// LoadOrCreateKeyring reads the key file (one "id base64-key" per line, the
// first one seals), or makes it with one key and mode 0600.
func LoadOrCreateKeyring(file string) (*Keyring, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = newKeyFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("encryption keys: %w", err)
	}
	k, err := parseKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("encryption keys in %s are damaged: %w; restore the file from a backup", file, err)
	}
	return k, nil
}

func newKeyFile(file string) ([]byte, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	data := []byte("1 " + base64.StdEncoding.EncodeToString(key) + "\n")
	return data, WriteFile(file, data, 0o600)
}

func parseKeyring(data []byte) (*Keyring, error) {
	k := &Keyring{keys: make(map[uint32]cipher.AEAD)}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		idText, keyText, ok := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if !ok {
			return nil, errors.New("a line is not of the form \"id key\"")
		}
		id, err := strconv.ParseUint(idText, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("key id %q: %w", idText, err)
		}
		aead, err := newAEAD(keyText)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", id, err)
		}
		if _, twice := k.keys[uint32(id)]; twice {
			return nil, fmt.Errorf("key %d is there twice", id)
		}
		if len(k.keys) == 0 {
			k.first = uint32(id)
		}
		k.keys[uint32(id)] = aead
	}
	if len(k.keys) == 0 {
		return nil, errors.New("there is no key")
	}
	return k, lines.Err()
}

func newAEAD(keyText string) (cipher.AEAD, error) {
	key, err := base64.StdEncoding.DecodeString(keyText)
	if err != nil {
		return nil, err
	}
	if len(key) != 32 {
		return nil, fmt.Errorf("has %d bytes, not 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Encrypt seals plain; it opens only under the same key name, so that a value
// cannot be moved to another object.
func (k *Keyring) Encrypt(key string, plain []byte) ([]byte, error) {
	aead := k.keys[k.first]
	sealed := make([]byte, 0, sealHeader+len(plain)+aead.Overhead())
	sealed = append(sealed, sealMagic...)
	sealed = binary.BigEndian.AppendUint32(sealed, k.first)
	return aead.Seal(sealed, nil, plain, []byte(key)), nil
}

// Decrypt opens what Encrypt sealed; a value that was never sealed comes back
// as it is.
func (k *Keyring) Decrypt(key string, sealed []byte) ([]byte, error) {
	if !bytes.HasPrefix(sealed, []byte(sealMagic)) {
		return sealed, nil
	}
	if len(sealed) < sealHeader {
		return nil, errors.New("pki: sealed value is cut short")
	}
	aead, ok := k.keys[binary.BigEndian.Uint32(sealed[len(sealMagic):])]
	if !ok {
		return nil, ErrUnknownKey
	}
	plain, err := aead.Open(nil, nil, sealed[sealHeader:], []byte(key))
	if err != nil {
		return nil, fmt.Errorf("open sealed value of %s: %w", key, err)
	}
	return plain, nil
}
