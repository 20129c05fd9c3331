package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmd "k8s.io/client-go/tools/clientcmd"

	"golang.org/x/sync/errgroup"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/controllers/nodes"
	"orch/server/registry"
	"orch/server/registry/admission"
	"orch/server/registry/kinds"
	"orch/store"
)

// testServer is what server.Run puts together, less the API.
type testServer struct {
	dir      string
	keys     *Keys
	guard    *Guard
	registry *registry.Registry
	url      string
}

var serviceCIDR = &net.IPNet{IP: net.IPv4(10, 43, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}

// testClaims know a server on this machine and one elsewhere.
var testClaims = auth.Claims{
	Pods: netip.MustParsePrefix("10.42.0.0/16"), Services: netip.MustParsePrefix("10.43.0.0/16"), Domain: "cluster.local", Names: []string{"api.example.com"},
	Servers: func(context.Context) (map[netip.Addr]string, error) {
		return map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "server-1", netip.MustParseAddr("192.0.2.2"): "server-2"}, nil
	},
}

func newTestServer(t *testing.T) *testServer {
	t.Helper()
	s := &testServer{dir: t.TempDir()}
	var err error
	s.keys, err = LoadKeys(Config{Dir: s.dir, Hosts: []string{"box"}, ServiceIP: FirstServiceIP(serviceCIDR), Domain: "cluster.local", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if s.guard, err = NewGuard(s.keys, "cluster.local", time.Now); err != nil {
		t.Fatal(err)
	}
	plugins, err := admission.Chain(admission.Config{Authorizer: s.guard.Authorizer, Escalation: s.guard.Escalation(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.registry, err = registry.New(registry.Config{
		Resources: kinds.Table(kinds.Config{ServiceCIDR: serviceCIDR}), Admission: plugins, Encryption: s.keys.AtRest,
	})
	if err != nil {
		t.Fatal(err)
	}
	data := store.New(store.Config{Dir: t.TempDir(), Codec: s.registry.StoreCodec()})
	s.registry.UseStore(data)
	s.guard.Bind(s.registry)
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return data.Run(ctx) })
	<-data.Ready()
	running.Go(func() error { return s.guard.Run(ctx) })
	agents := &Agents{Keys: s.keys, Tokens: &Rotation{Dir: s.dir, Keys: s.keys, Registry: s.registry, Now: time.Now, Logger: slog.Default()}, Registry: s.registry, Now: time.Now, Claims: testClaims, Short: s.guard.Tokens, Settings: joining.Settings{ClusterDomain: "cluster.local"}}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", s.keys.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: agents.Handler(), ErrorLog: log.New(io.Discard, "", 0)}
	running.Go(func() error { return web.Serve(listener) })
	s.url = "https://" + listener.Addr().String()
	t.Cleanup(func() {
		cancel()
		web.Close()
		if err := running.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s
}

func (s *testServer) bootstrap(t *testing.T) {
	t.Helper()
	cluster := Cluster{CA: s.keys.CA.PEM(), ServiceCIDR: serviceCIDR, ServiceIP: FirstServiceIP(serviceCIDR),
		Servers: []net.IP{net.IPv4(192, 0, 2, 7)}, Port: 6443}
	if err := errors.Join(Bootstrap(t.Context(), s.registry, cluster), PublishServers(t.Context(), s.registry, cluster)); err != nil {
		t.Fatal(err)
	}
}

func TestBootstrapTwice(t *testing.T) {
	s := newTestServer(t)
	start := time.Now()
	s.bootstrap(t)
	t.Log("bootstrap took", time.Since(start))
	before := versions(t, s.registry)
	s.bootstrap(t)
	if after := versions(t, s.registry); after != before {
		t.Errorf("a second bootstrap writes:\n%s\n%s", before, after)
	}
	service, err := registry.Of[*corev1.Service](s.registry).Get("default", "kubernetes")
	if err != nil || service.Spec.ClusterIP != "10.43.0.1" {
		t.Errorf("service %v, %v", service, err)
	}
	<-s.guard.Synced()
	user := &auth.User{Name: "system:kube-scheduler", Groups: []string{auth.GroupAuthenticated}}
	watch := func() bool {
		ok, _, _ := s.guard.Authorizer.Authorize(t.Context(), &auth.Attributes{User: user, Verb: "list", Resource: "nodes", ResourceRequest: true})
		return ok
	}
	deadline := time.Now().Add(10 * time.Second)
	for !watch() { // the index follows a moment behind
		if time.Now().After(deadline) {
			t.Fatal("the scheduler may not list nodes")
		}
	}
}

// versions is the state of all objects, as "kind/name=version" lines.
func versions(t *testing.T, r *registry.Registry) string {
	t.Helper()
	var out strings.Builder
	for _, res := range r.Resources() {
		if res.Evaluate != nil || res.Stored != nil || res.New == nil || res.NewList == nil {
			continue
		}
		list, err := r.List(t.Context(), res, registry.Selection{}, &metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			out.WriteString(res.Plural + "/" + o.GetName() + "=" + o.GetResourceVersion() + "\n")
		}
	}
	return out.String()
}

// An administrator's change to a default role stays, a missing rule comes back
// unless the role is marked as the administrator's.
func TestEnsurePolicyRepairs(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	roles := registry.Of[*rbacv1.ClusterRole](s.registry)
	change := func(name, auto string) {
		_, err := roles.Mutate(t.Context(), "", name, func(r *rbacv1.ClusterRole) error {
			r.Rules = []rbacv1.PolicyRule{{Verbs: []string{"own"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
			r.Annotations[rbacv1.AutoUpdateAnnotationKey] = auto
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	change("system:node-proxier", "true")
	change("system:kube-dns", "false")
	s.bootstrap(t)
	repaired, _ := roles.Get("", "system:node-proxier")
	left, _ := roles.Get("", "system:kube-dns")
	if len(repaired.Rules) < 5 || repaired.Rules[0].Verbs[0] != "own" {
		t.Errorf("rules %v", repaired.Rules)
	}
	if len(left.Rules) != 1 {
		t.Errorf("rules of a role that was taken over %v", left.Rules)
	}
}

func TestJoin(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	cfg := joining.Config{Server: s.url, Token: s.keys.Tokens.Agent.String(), NodeName: "n1", Addresses: []string{"192.0.2.9"}, Dir: t.TempDir()}
	c, err := joining.Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.Client.Current().Leaf
	if leaf.Subject.CommonName != "system:node:n1" || len(leaf.Subject.Organization) != 1 || leaf.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject %s", leaf.Subject)
	}
	if serving := c.Serving.Current().Leaf; serving.VerifyHostname("192.0.2.9") != nil || serving.VerifyHostname("n1") != nil {
		t.Errorf("serving certificate for %v %v", serving.IPAddresses, serving.DNSNames)
	}
	if c.Settings.ClusterDomain != "cluster.local" {
		t.Errorf("settings %+v", c.Settings)
	}
	// A restart needs neither the token nor the server.
	again, err := joining.Join(t.Context(), joining.Config{Server: "https://127.0.0.1:1", NodeName: "n1", Dir: cfg.Dir})
	if err != nil || !again.Client.Current().Leaf.Equal(leaf) {
		t.Errorf("restart: %v", err)
	}
	for _, name := range []string{"node.key", "node.json"} {
		if info, err := os.Stat(filepath.Join(cfg.Dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestJoinWithShortToken(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	for name, ttl := range map[string]time.Duration{"n1": time.Hour, "n2": time.Nanosecond} {
		token, secret := joining.NewBootstrapToken(s.keys.CA.Hash(), "", ttl, time.Now())
		if _, err := registry.Of[*corev1.Secret](s.registry).Create(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		_, err := joining.Join(t.Context(), joining.Config{Server: s.url, Token: token.String(), NodeName: name, Dir: t.TempDir()})
		if (err == nil) != (ttl == time.Hour) {
			t.Errorf("token for %s: %v", ttl, err)
		}
	}
}

func TestJoinRefused(t *testing.T) {
	s, other := newTestServer(t), newTestServer(t)
	s.bootstrap(t)
	good := s.keys.Tokens.Agent
	wrong := good
	wrong.Secret = "guess"
	for name, test := range map[string]struct{ server, token, want string }{
		"wrong secret": {s.url, wrong.String(), "the token's secret is wrong"},
		"wrong server": {other.url, good.String(), "is not the server that the token is for"},
		"no token":     {s.url, "", "joining needs a token"},
		"bad token":    {s.url, "K10abc::node:x", "not a join token"},
		"nobody there": {"https://127.0.0.1:1", good.String(), "reach server https://127.0.0.1:1"},
		"bad address":  {"192.0.2.1:6443", good.String(), "is not of the form https://host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := joining.Join(t.Context(), joining.Config{Server: test.server, Token: test.token, NodeName: "n1", Dir: t.TempDir()})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

// A node renews in its own name with its certificate, without a token.
func TestRenewal(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	c, err := joining.Join(t.Context(), joining.Config{Server: s.url, Token: s.keys.Tokens.Agent.String(), NodeName: "n1", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	key, ok := c.Client.Current().PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatal("no key")
	}
	csr, err := pki.NewRequest(key, "anything", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.TLSConfig()}}
	defer client.CloseIdleConnections()
	for node, want := range map[string]int{"n1": http.StatusOK, "n2": http.StatusUnauthorized} {
		body, err := json.Marshal(joining.Request{NodeName: node, CSR: string(csr)})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Post(s.url+joining.PathAgent, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", node, resp.StatusCode, want)
		}
	}
}

// The secret must not reach a server that has not proved itself.
func TestSecretStaysHome(t *testing.T) {
	s := newTestServer(t)
	var seen []string
	trap := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, secret, ok := r.BasicAuth(); ok {
			seen = append(seen, secret)
		}
		_, _ = w.Write(s.keys.CA.PEM()) // the right CA, which is public, without its key
	}))
	defer trap.Close()
	_, err := joining.Join(t.Context(), joining.Config{Server: trap.URL, Token: s.keys.Tokens.Agent.String(), NodeName: "n1", Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "shows a certificate of another CA") {
		t.Errorf("got %v", err)
	}
	if len(seen) > 0 {
		t.Errorf("the secret was sent: %q", seen)
	}
}

// A node's name belongs to the first key that asks for it, until its Node is
// not ready or deleted.
func TestNodeNameIsTaken(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	join := func() error {
		_, err := joining.Join(t.Context(), joining.Config{Server: s.url, Token: s.keys.Tokens.Agent.Secret, NodeName: "n1", Dir: t.TempDir()})
		return err
	}
	if err := join(); err != nil {
		t.Fatal(err)
	}
	nodes := registry.Of[*corev1.Node](s.registry)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if _, err := nodes.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	var refused *joining.RefusedError
	if err := join(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "is running with another key") {
		t.Errorf("got %v", err)
	}
	if _, err := nodes.MutateStatus(t.Context(), "", "n1", func(n *corev1.Node) error {
		n.Status.Conditions[0].Status = corev1.ConditionUnknown
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := join(); err != nil {
		t.Errorf("a machine that was installed anew: %v", err)
	}
	if err := nodes.Delete(t.Context(), "", "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := join(); err != nil {
		t.Errorf("a new machine under a freed name: %v", err)
	}
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	load := func(token string) (*Keys, error) {
		return LoadKeys(Config{Dir: dir, Domain: "cluster.local", Token: token, Now: time.Now})
	}
	first, err := load("")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil || strings.TrimSpace(string(data)) != first.Tokens.Server.String() || !strings.HasPrefix(string(data), "K10"+first.CA.Hash()+"::server:") {
		t.Errorf("file %q, %v", data, err)
	}
	if again, err := load(""); err != nil || again.Tokens != first.Tokens {
		t.Errorf("tokens changed: %v %v", again, err)
	}
	if given, err := load("sesame"); err != nil || given.Tokens.Server.Secret != "sesame" || given.Tokens.Agent != first.Tokens.Agent {
		t.Errorf("tokens %v %v", given, err)
	}
	if _, err := load("K10" + strings.Repeat("0", 64) + "::server:x"); err == nil || !strings.Contains(err.Error(), "--token: the token belongs to another cluster") {
		t.Errorf("foreign token: %v", err)
	}
	if first.Tokens.userOf(first.Tokens.Agent.Secret) != joining.UserNode || first.Tokens.userOf("") != "" {
		t.Error("secrets are mixed up")
	}
}

func TestKubeconfig(t *testing.T) {
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "etc", "kubeconfig.yaml")
	if err := (Kubeconfig{Path: path, Server: "https://127.0.0.1:6443"}).Write(ca, time.Now()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil || config.Host != "https://127.0.0.1:6443" || len(config.CAData) == 0 || len(config.KeyData) == 0 {
		t.Errorf("config %v, %v", config, err)
	}
	// A folder where the file should be is as good as a read-only place.
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err = Kubeconfig{Path: filepath.Join(blocked, "kubeconfig.yaml")}.Write(ca, time.Now())
	if err == nil || !strings.Contains(err.Error(), "choose another place with --write-kubeconfig") || !strings.Contains(err.Error(), blocked) {
		t.Errorf("got %v", err)
	}
}

// A certificate is good as long as the node's name belongs to its key.
func TestRevoked(t *testing.T) {
	s := newTestServer(t)
	s.bootstrap(t)
	join := func(dir string) (*joining.Credentials, *x509.Certificate) {
		c, err := joining.Join(t.Context(), joining.Config{Server: s.url, Token: s.keys.Tokens.Agent.Secret, NodeName: "n1", Dir: dir, Fresh: true})
		if err != nil {
			t.Fatal(err)
		}
		cert, err := c.Client.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, cert.Leaf
	}
	dir := t.TempDir()
	_, first := join(dir)
	if s.guard.Revoked(first) {
		t.Error("the certificate is refused at once")
	}
	secrets := registry.Of[*corev1.Secret](s.registry)
	if _, err := secrets.Mutate(t.Context(), metav1.NamespaceSystem, nodes.KeyName("n1"), func(s *corev1.Secret) error {
		s.Data = map[string][]byte{nodes.KeyRevoked: s.Data[nodes.KeyHolder]}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !s.guard.Revoked(first) {
		t.Error("the certificate of a deleted node is good")
	}
	if _, again := join(dir); s.guard.Revoked(again) {
		t.Error("the node cannot come back with the token")
	}
	if _, other := join(t.TempDir()); s.guard.Revoked(other) || !s.guard.Revoked(first) {
		t.Error("the name does not go to the key of the machine that was installed anew")
	}
}
