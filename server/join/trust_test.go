package join

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/internal/version"
)

// A man in the middle shows the cluster's CA, which is public, together with his
// own: neither a node's nor a server's secret reaches him.
func TestOnlyWhatWasHashedIsTrusted(t *testing.T) {
	s := newTestServer(t)
	own, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := own.Issue(pki.ServingProfile([]string{"127.0.0.1"}, nil, "cluster.local"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	real, his := string(s.keys.CA.PEM()), string(own.PEM())
	withHeader := strings.Replace(real, "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nA: b\n\n", 1)
	for name, shown := range map[string]string{
		"then his": real + his, "his first": his + real, "text between": real + "# more\n" + his, "with headers": withHeader + his,
		"text before": "# a note\n" + real, "text after": real + "# a note\n", "alone": real, "twice": real + real,
	} {
		var secrets atomic.Int32
		trap := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); ok {
				secrets.Add(1)
			}
			_, _ = w.Write([]byte(shown))
		}))
		trap.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		trap.Config.ErrorLog = log.New(io.Discard, "", 0)
		trap.StartTLS()
		_, err := joining.Join(t.Context(), joining.Config{Server: trap.URL, Token: s.keys.Tokens.Agent.String(), NodeName: "n1", Dir: t.TempDir()})
		_, serverErr := joining.JoinServer(t.Context(), trap.URL, s.keys.Tokens.Server.String(), joining.ServerRequest{Name: "s2"})
		trap.Close()
		if err == nil || serverErr == nil || secrets.Load() > 0 {
			t.Errorf("%s: %d secrets were sent; %v; %v", name, secrets.Load(), err, serverErr)
		}
	}
}

// A node's certificate is of the same CA, and stands for no server.
func TestNodeIsNoServer(t *testing.T) {
	s := newTestServer(t)
	for name, profile := range map[string]pki.Profile{
		"a node":   pki.NodeServingProfile("evil", []net.IP{net.IPv4(127, 0, 0, 1)}),
		"a server": pki.ServingProfile([]string{"127.0.0.1"}, nil, "cluster.local"),
	} {
		pair, err := s.keys.CA.Issue(profile, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pair.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		var secrets atomic.Int32
		trap := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); ok {
				secrets.Add(1)
			}
			_, _ = w.Write(s.keys.CA.PEM())
		}))
		trap.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		trap.Config.ErrorLog = log.New(io.Discard, "", 0)
		trap.StartTLS()
		_, err = joining.JoinServer(t.Context(), trap.URL, s.keys.Tokens.Server.String(), joining.ServerRequest{Name: "s2"})
		trap.Close()
		if sent := secrets.Load() > 0; sent != (name == "a server") || err == nil {
			t.Errorf("%s: secret sent %t, %v", name, sent, err)
		}
	}
}

// A node gets no certificate for what is not its own.
func TestJoinBoundsNamesAndAddresses(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	join := func(node string, addresses ...string) error {
		_, err := joining.Join(t.Context(), joining.Config{Server: s.url, Token: s.keys.Tokens.Agent.Secret, NodeName: node, Addresses: addresses, Dir: t.TempDir()})
		return err
	}
	for _, name := range []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "web.shop.svc", "x.cluster.local", "localhost", pki.PeerName, "api.example.com", "10.43.0.1"} {
		if err := join(name); err == nil || !strings.Contains(err.Error(), "node name") && !strings.Contains(err.Error(), "is an address of services") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range []string{"127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "10.43.0.1", "10.42.3.3", "192.0.2.2", "x", "::ffff:10.43.0.1"} {
		if err := join("n1", address); err == nil {
			t.Errorf("%s is certified", address)
		}
	}
	if err := join("n1", "192.0.2.9"); err != nil {
		t.Error(err)
	}
	if err := join("server-1", "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "no address by which") {
		t.Errorf("the agent on a server's own machine has its name, and no loopback address: %v", err)
	}
}

func TestJoinBodyIsOneDocument(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	key, err := pki.LoadOrCreateKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewRequest(key, "n1", nil)
	if err != nil {
		t.Fatal(err)
	}
	body := func(csr string, addresses int) string {
		request := joining.Request{NodeName: "n1", CSR: csr, Version: version.Kubernetes}
		for i := range addresses {
			request.Addresses = append(request.Addresses, fmt.Sprintf("192.0.2.%d", 10+i))
		}
		text, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.keys.CA.Pool()}}}
	defer client.CloseIdleConnections()
	good := body(string(csr), maxAddresses)
	for text, want := range map[string]int{
		good: http.StatusOK, good + "\n": http.StatusOK, good + good: http.StatusBadRequest, good + "x": http.StatusBadRequest,
		body(string(csr)+string(csr), 1): http.StatusBadRequest, body(string(csr), maxAddresses+1): http.StatusForbidden,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+joining.PathAgent, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(joining.UserNode, s.keys.Tokens.Agent.Secret)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d bytes: %d, want %d", len(text), resp.StatusCode, want)
		}
	}
}
