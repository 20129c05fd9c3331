package join

import (
	"crypto/ecdsa"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"orch/internal/pki"
)

// Config says what a server's credentials are made for.
type Config struct {
	Dir        string   // <data-dir>/server
	Name       string   // of this server
	Hosts      []string // node name, addresses and --tls-san values
	ServiceIP  net.IP   // first address of the service CIDR
	Domain     string   // cluster domain
	Token      string   // --token; "" makes one
	AgentToken string   // --agent-token; "" makes one
	Now        func() time.Time
}

// Keys are the secrets of a server.
type Keys struct {
	CA              *pki.Authority
	ServiceAccounts *ecdsa.PrivateKey // signs service-account tokens
	AtRest          *pki.Keyring      // seals secrets in the store
	Serving         *pki.Source       // the API's own certificate; its Run renews it
	Tokens          Tokens

	// Peers signs for servers alone, so that no certificate which the API signs
	// for others opens what servers say to each other.
	Peers *pki.Authority
	Peer  *pki.Source // this server's, towards the others
}

// LoadKeys reads what an earlier start left in cfg.Dir and makes what is
// missing. Certificates for TLS are made anew at each start and live in memory
// only.
func LoadKeys(cfg Config) (*Keys, error) {
	folder := filepath.Join(cfg.Dir, "tls")
	ca, err := pki.LoadOrCreateAuthority(folder, cfg.Now())
	if err != nil {
		return nil, err
	}
	accounts, err := pki.LoadOrCreateKey(filepath.Join(folder, "service-account.key"))
	if err != nil {
		return nil, fmt.Errorf("service-account signing key: %w", err)
	}
	atRest, err := pki.LoadOrCreateKeyring(filepath.Join(folder, "encryption.keys"))
	if err != nil {
		return nil, err
	}
	peers, err := pki.LoadOrCreateAuthority(filepath.Join(folder, "servers"), cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("authority of the servers: %w", err)
	}
	peer, err := pki.NewIssuedSource(peers, pki.PeerProfile(cfg.Name), cfg.Now)
	if err != nil {
		return nil, fmt.Errorf("certificate towards other servers: %w", err)
	}
	serving, err := pki.NewIssuedSource(ca, pki.ServingProfile(cfg.Hosts, cfg.ServiceIP, cfg.Domain), cfg.Now)
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	tokens, err := loadTokens(cfg, ca.Hash())
	if err != nil {
		return nil, err
	}
	return &Keys{CA: ca, ServiceAccounts: accounts, AtRest: atRest, Serving: serving, Tokens: tokens, Peers: peers, Peer: peer}, nil
}

// TLSConfig is for the server's one listener. Client certificates are asked
// for and verified once per connection; tokens need none.
func (k *Keys) TLSConfig(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: k.Serving.GetCertificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      k.CA.Pool(),
		NextProtos:     append([]string{"h2", "http/1.1"}, protocols...),
	}
}
