package pki

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// maxRSABits is the largest RSA key that Go's TLS takes. To check a signature
// takes the square of the key's length, and requests come from anybody.
const maxRSABits = 8192

// CheckSignature checks that the sender of a certificate request holds its key.
func CheckSignature(csr *x509.CertificateRequest) error {
	if key, ok := csr.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
		return fmt.Errorf("an RSA key of %d bits: at most %d are taken", key.N.BitLen(), maxRSABits)
	}
	return csr.CheckSignature()
}
