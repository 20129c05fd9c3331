package pki

import (
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
)

// TestHugeKey: the signature of a key of 100 kB takes minutes to check.
func TestHugeKey(t *testing.T) {
	n := new(big.Int).Lsh(big.NewInt(1), 800_000)
	csr := &x509.CertificateRequest{
		PublicKey:          &rsa.PublicKey{N: n.Sub(n, big.NewInt(1)), E: 1<<31 - 1},
		SignatureAlgorithm: x509.SHA256WithRSA, Signature: make([]byte, 100_000),
	}
	if err := CheckSignature(csr); err == nil || !strings.Contains(err.Error(), "at most 8192 are taken") {
		t.Error(err)
	}
}
