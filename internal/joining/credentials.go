package joining

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/internal/pki"
	"orch/internal/version"
)

// nodeUserPrefix begins the names of nodes in their certificates.
const nodeUserPrefix = "system:node:"

// Config says who joins what.
type Config struct {
	Server    string // URL
	Token     string // whole token, or a bare secret for a server on this machine
	NodeName  string
	Addresses []string // of this node, for its serving certificate
	Dir       string   // <data-dir>/agent: where key and certificates are kept
	// Dial connects to any server of the cluster once the node has its
	// credentials; nil: to the one of Server.
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Fresh bool // leave certificates that are kept alone: they were refused
}

// Credentials are a member's identity: the key is made here once and never
// leaves, the certificates renew themselves while Run runs.
type Credentials struct {
	CA       []byte // PEM
	Settings Settings
	Client   *pki.Source // towards the API
	Serving  *pki.Source // of the node's own server

	cfg    Config
	server *url.URL
	key    *ecdsa.PrivateKey
	ca     *x509.Certificate
}

// Join gives the node's credentials: those of an earlier start when they are
// still good, else new ones from the server.
func Join(ctx context.Context, cfg Config) (*Credentials, error) {
	server, err := url.Parse(cfg.Server)
	if err != nil || server.Host == "" || server.Scheme != "https" {
		return nil, fmt.Errorf("server %q is not of the form https://host:port", cfg.Server)
	}
	var token Token
	if cfg.Token != "" {
		if token, err = ParseToken(cfg.Token); err != nil {
			return nil, err
		}
	}
	key, err := pki.LoadOrCreateKey(filepath.Join(cfg.Dir, "node.key"))
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	c := &Credentials{cfg: cfg, server: server, key: key}
	answer, err := c.load()
	if err != nil {
		return nil, err
	}
	if cfg.Fresh || answer == nil || !c.usable(answer, token, time.Now()) {
		if answer, err = c.join(ctx, token); err != nil {
			return nil, err
		}
	}
	return c, c.accept(answer)
}

func (c *Credentials) file() string { return filepath.Join(c.cfg.Dir, "node.json") }

// load reads the answer kept from an earlier start, nil when there is none.
func (c *Credentials) load() (*Answer, error) {
	data, err := os.ReadFile(c.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("node credentials: %w", err)
	}
	answer := &Answer{}
	if err := json.Unmarshal(data, answer); err != nil {
		return nil, nil // damaged: the server gives us new ones
	}
	return answer, nil
}

// usable tells whether kept credentials still serve this configuration.
func (c *Credentials) usable(answer *Answer, token Token, now time.Time) bool {
	ca, err := pki.ParseCertificate([]byte(answer.CA))
	if err != nil || token.CAHash != "" && token.CAHash != pki.HashOf(ca) {
		return false
	}
	for _, text := range []string{answer.ClientCertificate, answer.ServingCertificate} {
		cert, err := pki.ParseCertificate([]byte(text))
		if err != nil || !c.key.PublicKey.Equal(cert.PublicKey) || cert.CheckSignatureFrom(ca) != nil ||
			!now.Before(cert.NotAfter) || cert.Subject.CommonName != nodeUserPrefix+c.cfg.NodeName {
			return false
		}
	}
	return true
}

func (c *Credentials) request() (Request, error) {
	csr, err := pki.NewRequest(c.key, nodeUserPrefix+c.cfg.NodeName, []string{"system:nodes"})
	if err != nil {
		return Request{}, err
	}
	return Request{NodeName: c.cfg.NodeName, CSR: string(csr), Addresses: c.cfg.Addresses, Version: version.Kubernetes}, nil
}

func (c *Credentials) join(ctx context.Context, token Token) (*Answer, error) {
	if token.Secret == "" {
		return nil, errors.New("joining needs a token: pass --token with the text of <data-dir>/server/agent-token of the server")
	}
	ca, err := fetchCA(ctx, c.server, token)
	if err != nil {
		return nil, err
	}
	request, err := c.request()
	if err != nil {
		return nil, err
	}
	answer, err := post(ctx, c.server, &http.Transport{TLSClientConfig: trust(ca)}, token, request)
	if err != nil {
		return nil, err
	}
	answer.CA = string(pki.EncodeCertificate(ca)) // the one that was checked
	return answer, c.save(answer)
}

func (c *Credentials) save(answer *Answer) error {
	data, err := json.MarshalIndent(answer, "", "  ")
	if err == nil {
		err = pki.WriteFile(c.file(), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep node credentials: %w", err)
	}
	return nil
}

func (c *Credentials) accept(answer *Answer) error {
	ca, err := pki.ParseCertificate([]byte(answer.CA))
	if err != nil {
		return fmt.Errorf("CA certificate: %w", err)
	}
	c.CA, c.Settings, c.ca = pki.EncodeCertificate(ca), answer.Settings, ca
	client, err := c.certificate(answer.ClientCertificate)
	if err != nil {
		return err
	}
	serving, err := c.certificate(answer.ServingCertificate)
	if err != nil {
		return err
	}
	c.Client, err = pki.NewSource(client, func(ctx context.Context) (*tls.Certificate, error) {
		return c.renew(ctx, func(a *Answer) string { return a.ClientCertificate })
	})
	if err != nil {
		return err
	}
	c.Serving, err = pki.NewSource(serving, func(ctx context.Context) (*tls.Certificate, error) {
		return c.renew(ctx, func(a *Answer) string { return a.ServingCertificate })
	})
	return err
}

func (c *Credentials) certificate(certPEM string) (*tls.Certificate, error) {
	leaf, err := pki.ParseCertificate([]byte(certPEM))
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	if !c.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("node certificate is not for this node's key")
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: c.key, Leaf: leaf}, nil
}

// renew asks for new certificates in the name of the present one.
func (c *Credentials) renew(ctx context.Context, part func(*Answer) string) (*tls.Certificate, error) {
	request, err := c.request()
	if err != nil {
		return nil, err
	}
	answer, err := post(ctx, c.server, c.transport(), Token{}, request)
	if err != nil {
		return nil, err
	}
	answer.CA = string(c.CA)
	if err := c.save(answer); err != nil {
		return nil, err
	}
	return c.certificate(part(answer))
}

func (c *Credentials) transport() *http.Transport {
	return &http.Transport{TLSClientConfig: c.TLSConfig(), DialContext: c.cfg.Dial}
}

// serverName is in the certificate of every server, under whatever address it
// is reached.
const serverName = "kubernetes"

// TLSConfig is for connections to the servers.
func (c *Credentials) TLSConfig() *tls.Config {
	config := trust(c.ca)
	config.ServerName, config.GetClientCertificate = serverName, c.Client.GetClientCertificate
	return config
}

// Run renews the certificates when they are due, until ctx ends.
func (c *Credentials) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.Client.Run(ctx) })
	group.Go(func() error { return c.Serving.Run(ctx) })
	return group.Wait()
}
