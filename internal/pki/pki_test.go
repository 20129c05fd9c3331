package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newTestAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := LoadOrCreateAuthority(t.TempDir(), testTime)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthorityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	first, err := LoadOrCreateAuthority(dir, testTime)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateAuthority(dir, testTime.Add(time.Hour))
	if err != nil || again.Hash() != first.Hash() {
		t.Fatalf("hash %s after a restart, was %s (%v)", again.Hash(), first.Hash(), err)
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
}

// A crash between key and certificate leaves the key alone: it is completed.
func TestAuthorityHalfMade(t *testing.T) {
	dir := t.TempDir()
	key, err := LoadOrCreateKey(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := LoadOrCreateAuthority(dir, testTime)
	if err != nil || !key.PublicKey.Equal(a.key.Public()) {
		t.Fatalf("the key was not kept: %v", err)
	}
}

func TestAuthorityDamaged(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"no key":      {func(dir string) error { return os.Remove(filepath.Join(dir, "ca.key")) }, "is of no use without it"},
		"certificate": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600) }, "is damaged"},
		"other key": {func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
				return err
			}
			_, err := LoadOrCreateKey(filepath.Join(dir, "ca.key"))
			return err
		}, "does not belong to"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := LoadOrCreateAuthority(dir, testTime); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateAuthority(dir, testTime); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

func TestServingProfile(t *testing.T) {
	a := newTestAuthority(t)
	p := ServingProfile([]string{"box", "192.0.2.7", "example.com", "box", "0.0.0.0", ""}, net.IPv4(10, 43, 0, 1), "cluster.local")
	pair, err := a.Issue(p, testTime)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "box", "192.0.2.7", "example.com", "10.43.0.1", "kubernetes", "kubernetes.default.svc.cluster.local"} {
		_, err := cert.Verify(x509.VerifyOptions{DNSName: host, Roots: a.Pool(), CurrentTime: testTime})
		if err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if len(cert.IPAddresses) != 4 || len(cert.DNSNames) != 7 {
		t.Errorf("names %v %v", cert.IPAddresses, cert.DNSNames)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: testTime, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		t.Error("a serving certificate authenticates a client")
	}
}

func TestSourceRenews(t *testing.T) {
	a := newTestAuthority(t)
	past, err := a.Issue(Profile{CommonName: "x", Client: true, Lifetime: time.Hour}, time.Now().Add(-50*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	first, err := past.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	source, err := NewSource(first, func(context.Context) (*tls.Certificate, error) {
		defer cancel() // once is enough
		next, err := a.Issue(Profile{CommonName: "y", Client: true}, time.Now())
		if err != nil {
			return nil, err
		}
		return next.Certificate()
	})
	if err != nil {
		t.Fatal(err)
	}
	var running errgroup.Group
	running.Go(func() error { return source.Run(ctx) })
	if err := running.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, _ := source.GetClientCertificate(nil); got.Leaf.Subject.CommonName != "y" {
		t.Errorf("certificate of %s after its renewal", got.Leaf.Subject.CommonName)
	}
}

func TestRenewalTime(t *testing.T) {
	cert := &x509.Certificate{NotBefore: testTime, NotAfter: testTime.Add(3 * time.Hour)}
	if got := RenewalTime(cert); !got.Equal(testTime.Add(2 * time.Hour)) {
		t.Errorf("due %s", got)
	}
}

func TestKeyring(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	k, err := LoadOrCreateKeyring(file)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Encrypt("secrets/ns/a", []byte("hush"))
	if err != nil || bytes.Contains(sealed, []byte("hush")) {
		t.Fatalf("sealed %q, %v", sealed, err)
	}
	// A new key comes first; values under the old one stay readable.
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fresh := "2 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	if err := os.WriteFile(file, append([]byte(fresh), data...), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err = LoadOrCreateKeyring(file); err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Decrypt("secrets/ns/a", sealed); err != nil || string(plain) != "hush" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, err := k.Decrypt("secrets/ns/b", sealed); err == nil {
		t.Error("a sealed value opens under another name")
	}
	rotated, err := k.Encrypt("x", []byte("hush"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := parseKeyring(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Decrypt("x", rotated); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
	if plain, err := k.Decrypt("x", []byte("k8s\x00clear")); err != nil || string(plain) != "k8s\x00clear" {
		t.Errorf("a value in clear: %q, %v", plain, err)
	}
}

func FuzzDecrypt(f *testing.F) {
	k, err := parseKeyring([]byte("1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"))
	if err != nil {
		f.Fatal(err)
	}
	sealed, _ := k.Encrypt("x", []byte("plain"))
	f.Add(sealed)
	f.Add([]byte(sealMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, err := k.Decrypt("x", data)
		if err == nil && bytes.HasPrefix(data, []byte(sealMagic)) && !slices.Equal(plain, []byte("plain")) {
			t.Errorf("forged value opens as %q", plain)
		}
	})
}

func TestWriteFileKeepsOld(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(file, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	data, _ := os.ReadFile(file)
	if err != nil || string(data) != "new" || info.Mode().Perm() != 0o640 {
		t.Errorf("%q %v %v", data, info.Mode(), err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
}

// FuzzPEM: a text is one certificate or none; there is never a second one that
// somebody else might read in it.
func FuzzPEM(f *testing.F) {
	a, err := LoadOrCreateAuthority(f.TempDir(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	one := string(a.PEM())
	for _, text := range []string{one, one + one, "x\n" + one, one + "x", strings.Replace(one, "-----\n", "-----\nA: b\n\n", 1), "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" + one, ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cert, err := ParseCertificate(text)
		if err != nil {
			return
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		if !pool.Equal(PoolOf(cert)) {
			t.Errorf("others read something else in %q", text)
		}
	})
}

func TestParseBundle(t *testing.T) {
	a, err := LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	one := string(a.PEM())
	for text, ok := range map[string]bool{
		one: true, one + one: true, "# mine\n" + one: true, "": false, one + "-----BEGIN CERTIFICATE-----\nx": false,
		one + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": false,
	} {
		if _, err := ParseBundle([]byte(text)); (err == nil) != ok {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
}
