package joining

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"orch/internal/pki"
)

// Paths of the server's joining endpoints.
const (
	PathCA     = "/cacerts"
	PathAgent  = "/v1-orch/agent/join"
	PathServer = "/v1-orch/server/join"
)

// maxAnswer bounds what is read from a server that is not yet trusted.
const maxAnswer = 1 << 20

// Request is the body of a POST to PathAgent. The first one is authenticated by
// the token, a renewal by the node's client certificate.
type Request struct {
	NodeName  string   `json:"nodeName"`
	CSR       string   `json:"csr"` // PEM
	Addresses []string `json:"addresses,omitempty"`
	Version   string   `json:"version,omitempty"` // of the Kubernetes API that the node is made for
}

// Answer is what a node gets for its Request.
type Answer struct {
	CA                 string   `json:"ca"`                 // PEM
	ClientCertificate  string   `json:"clientCertificate"`  // PEM; system:node:<name>
	ServingCertificate string   `json:"servingCertificate"` // PEM
	Settings           Settings `json:"settings"`
}

// Settings are what all nodes of a cluster agree on.
type Settings struct {
	ClusterCIDR   string   `json:"clusterCIDR"`
	ServiceCIDR   string   `json:"serviceCIDR"`
	ClusterDNS    string   `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	Servers       []string `json:"servers"` // URLs
}

// fetchCA gets the CA certificate from a server that nobody vouches for yet
// and checks it against the token, before any secret is sent. What is trusted
// from then on is the certificate that was checked, never the text.
func fetchCA(ctx context.Context, server *url.URL, t Token) (*x509.Certificate, error) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // nothing secret goes this way; the token's hash decides below
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.JoinPath(PathCA).String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, explain(server, err)
	}
	defer resp.Body.Close()
	if err := checkClock(server, resp.Header.Get("Date"), time.Now()); err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusInternalServerError {
		return nil, &RefusedError{Server: server.String(), Status: resp.StatusCode, Reason: resp.Status}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("server %s answers %s to %s: is it an orch server?", server, resp.Status, PathCA)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read CA certificate of %s: %w", server, err)
	}
	return checkCA(server, data, t)
}

func checkCA(server *url.URL, data []byte, t Token) (*x509.Certificate, error) {
	cert, err := pki.ParseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("CA certificate of %s: %w", server, err)
	}
	if t.CAHash == "" {
		if isLoopback(server.Hostname()) {
			return cert, nil
		}
		return nil, fmt.Errorf("the token is a bare secret, which cannot prove that %s is the right server: use the whole token, K10…, from <data-dir>/server/%s there", server, tokenFile(t.User))
	}
	if got := pki.HashOf(cert); got != t.CAHash {
		return nil, fmt.Errorf("%s is not the server that the token is for: its CA has the hash %s, the token says %s", server, got, t.CAHash)
	}
	return cert, nil
}

// trust is for connections to servers of the cluster of ca. Nodes have
// certificates of the same authority, and none of them may stand for a server.
func trust(ca *x509.Certificate) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pki.PoolOf(ca), VerifyConnection: isServer}
}

func isServer(state tls.ConnectionState) error {
	if name := state.PeerCertificates[0].Subject.CommonName; strings.HasPrefix(name, nodeUserPrefix) {
		return fmt.Errorf("the certificate shown is of %s, which is a node and no server", name)
	}
	return nil
}

// tokenFile is where servers keep the token that a server or a node joins with.
func tokenFile(user string) string {
	if user == UserServer {
		return "token"
	}
	return "agent-token"
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// post sends body to the server under transport's trust and credentials.
func post(ctx context.Context, server *url.URL, transport *http.Transport, t Token, body Request) (*Answer, error) {
	answer := &Answer{}
	return answer, exchange(ctx, server.JoinPath(PathAgent), transport, t, body, answer)
}

// exchange posts body to address and reads the answer.
func exchange(ctx context.Context, address *url.URL, transport *http.Transport, t Token, body, answer any) error {
	server := &url.URL{Scheme: address.Scheme, Host: address.Host}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address.String(), bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if t.Secret != "" {
		user := t.User
		if user == "" {
			user = UserNode
		}
		req.SetBasicAuth(user, t.Secret)
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return explain(server, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", server, err)
	}
	if resp.StatusCode != http.StatusOK {
		return &RefusedError{Server: server.String(), Status: resp.StatusCode, Reason: strings.TrimSpace(string(text))}
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("answer of %s: %w", server, err)
	}
	return nil
}
