// Package pki makes and keeps the cluster's certificates and keys: the CA, the
// certificates it issues and renews, and the keys for data at rest.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lifetimes of what the authority makes.
const (
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	LeafLifetime      = 365 * 24 * time.Hour

	// backdate lets machines whose clocks run a little behind accept a certificate.
	backdate = 5 * time.Minute
)

// Authority is a certificate authority with its key.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// LoadOrCreateAuthority reads ca.crt and ca.key in dir, or makes them. The key
// is written before the certificate: after a crash in between, the lone key is
// completed, for nobody can have seen a certificate yet.
func LoadOrCreateAuthority(dir string, now time.Time) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	data, err := os.ReadFile(certFile)
	if err == nil {
		return loadAuthority(certFile, data, keyFile)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	key, err := LoadOrCreateKey(keyFile)
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(key, now)
	if err != nil {
		return nil, err
	}
	if err := WriteFile(certFile, a.pem, 0o644); err != nil {
		return nil, fmt.Errorf("write CA certificate: %w", err)
	}
	return a, nil
}

func loadAuthority(certFile string, certPEM []byte, keyFile string) (*Authority, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate %s is damaged: %w; restore it from a backup", certFile, err)
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("%w; the CA certificate %s is of no use without it: restore it from a backup", err, certFile)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("CA key %s does not belong to CA certificate %s: restore both from the same backup", keyFile, certFile)
	}
	return &Authority{cert: cert, key: key, pem: certPEM}, nil
}

func newAuthority(key *ecdsa.PrivateKey, now time.Time) (*Authority, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	// The date in the name tells the CAs of two clusters apart in a trust store.
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("orch-ca@%d", now.Unix())},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(AuthorityLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &Authority{cert: cert, key: key, pem: encodeCertificate(der)}, nil
}

// PEM is the CA certificate as clients want it.
func (a *Authority) PEM() []byte { return bytes.Clone(a.pem) }

// Hash is the fingerprint that join tokens carry.
func (a *Authority) Hash() string { return HashOf(a.cert) }

// Pool is the certificate pool with this CA alone.
func (a *Authority) Pool() *x509.CertPool { return PoolOf(a.cert) }

// HashOf is the hex SHA-256 of a certificate's DER form.
func HashOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Profile says what a certificate is issued for.
type Profile struct {
	CommonName    string
	Organizations []string
	DNSNames      []string
	IPs           []net.IP
	Server        bool               // usable to serve TLS
	Client        bool               // usable to authenticate a TLS client
	Usages        []x509.KeyUsage    // instead of the usual digital signature
	Extended      []x509.ExtKeyUsage // instead of those that Server and Client ask for
	Lifetime      time.Duration      // 0: LeafLifetime
}

// Sign issues a certificate for a public key, from now on. It never outlives
// the CA.
func (a *Authority) Sign(public crypto.PublicKey, p Profile, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	lifetime := p.Lifetime
	if lifetime == 0 {
		lifetime = LeafLifetime
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: p.CommonName, Organization: p.Organizations},
		DNSNames:              p.DNSNames,
		IPAddresses:           p.IPs,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              p.keyUsage(),
		ExtKeyUsage:           p.extendedUsage(),
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", p.CommonName, err)
	}
	return encodeCertificate(der), nil
}

func (p Profile) keyUsage() x509.KeyUsage {
	if len(p.Usages) == 0 {
		return x509.KeyUsageDigitalSignature
	}
	var usage x509.KeyUsage
	for _, u := range p.Usages {
		usage |= u
	}
	return usage
}

func (p Profile) extendedUsage() []x509.ExtKeyUsage {
	if p.Extended != nil {
		return p.Extended
	}
	var usages []x509.ExtKeyUsage
	if p.Server {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	if p.Client {
		usages = append(usages, x509.ExtKeyUsageClientAuth)
	}
	return usages
}

// Pair is a certificate with its key, both as PEM.
type Pair struct {
	Cert, Key []byte
}

// Issue makes a new key and a certificate for it.
func (a *Authority) Issue(p Profile, now time.Time) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := a.Sign(key.Public(), p, now)
	if err != nil {
		return nil, err
	}
	return &Pair{Cert: cert, Key: keyPEM}, nil
}

// Certificate gives the pair in the form crypto/tls wants.
func (p *Pair) Certificate() (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	return &cert, nil
}

// NewRequest makes a PEM certificate request for key.
func NewRequest(key crypto.Signer, commonName string, organizations []string) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName, Organization: organizations}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	// RFC 5280 allows 20 octets; the top bit stays clear to keep it positive.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial, nil
}
