package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// What is read from a PEM text is what is used of it. Programs differ in what
// they take from a text that holds more than they look for (the first block,
// the last one, all of them, none with headers), so that such a text could be
// checked as one thing and trusted as another.

const (
	blockCertificate = "CERTIFICATE"
	blockRequest     = "CERTIFICATE REQUEST"
	blockKey         = "EC PRIVATE KEY"
)

// onlyBlock gives the one block that data consists of.
func onlyBlock(data []byte, kind string) ([]byte, error) {
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte("-----BEGIN "+kind+"-----")) {
		return nil, fmt.Errorf("it does not begin with a PEM %s", kind)
	}
	return lastBlock(data, kind)
}

// lastBlock gives the block that data ends with, and that is its only one. Text
// before it is let pass: openssl writes what a request says there.
func lastBlock(data []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil || block.Type != kind:
		return nil, fmt.Errorf("no PEM %s in it", kind)
	case len(block.Headers) > 0:
		return nil, fmt.Errorf("its PEM %s has headers, which are not allowed", kind)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, fmt.Errorf("more follows its PEM %s, where nothing may", kind)
	}
	return block.Bytes, nil
}

// ParseCertificate reads a PEM text that is one certificate and nothing else.
func ParseCertificate(data []byte) (*x509.Certificate, error) {
	der, err := onlyBlock(data, blockCertificate)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Leaf reads the first certificate of a chain that somebody else issued.
func Leaf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil || block.Type != blockCertificate {
		return nil, errors.New("no PEM " + blockCertificate + " in it")
	}
	return x509.ParseCertificate(block.Bytes)
}

// PoolOf trusts these certificates and no others.
func PoolOf(certificates ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

// ParseBundle reads a PEM text of one or more authorities that a user chose to
// trust. What is not a certificate is an error: left out in silence it would
// be missed later, where nobody looks for it here.
func ParseBundle(data []byte) (*x509.CertPool, error) {
	var all []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != blockCertificate {
			return nil, fmt.Errorf("it holds a PEM %s beside certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(all)+1, err)
		}
		all, data = append(all, c), rest
	}
	if len(all) == 0 {
		return nil, errors.New("no PEM " + blockCertificate + " in it")
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("what follows certificate %d is damaged", len(all))
	}
	return PoolOf(all...), nil
}

// EncodeCertificate gives the PEM form of a certificate.
func EncodeCertificate(c *x509.Certificate) []byte { return encodeCertificate(c.Raw) }

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der})
}

// ParseRequest reads a PEM certificate request and checks that its sender
// holds the key.
func ParseRequest(data []byte) (*x509.CertificateRequest, error) {
	der, err := lastBlock(data, blockRequest)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if err := CheckSignature(csr); err != nil {
		return nil, fmt.Errorf("certificate request's signature: %w", err)
	}
	return csr, nil
}
