package join

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/internal/version"
	"orch/server/auth"
	"orch/server/registry"
)

// Agents is the door at which nodes join: GET /cacerts and
// POST /v1-orch/agent/join.
type Agents struct {
	Keys     *Keys
	Tokens   *Rotation
	Registry *registry.Registry
	Settings joining.Settings
	Claims   auth.Claims
	Now      func() time.Time

	// Short knows the short-lived tokens, in Secrets; nil: there are none.
	Short auth.TokenChecker
}

// Handler serves the door's paths and no others.
func (a *Agents) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+joining.PathCA, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		_, _ = w.Write(a.Keys.CA.PEM()) // the client went away
	})
	mux.HandleFunc("POST "+joining.PathAgent, a.join)
	return mux
}

// maxRequest bounds the body of a request to join.
const maxRequest = 64 << 10

func (a *Agents) join(w http.ResponseWriter, r *http.Request) {
	if _, _, given := r.BasicAuth(); given && !a.Tokens.guesses.mayGuess(w, r, a.Now()) {
		return
	}
	request := joining.Request{}
	if err := decodeOnly(http.MaxBytesReader(w, r.Body, maxRequest), &request); err != nil {
		http.Error(w, "the request is not the JSON of a joining node", http.StatusBadRequest)
		return
	}
	if reason, status := a.mayJoin(r, request.NodeName); status != 0 {
		http.Error(w, reason, status)
		return
	}
	_, _, fresh := r.BasicAuth() // what runs already is not cut off when its certificate is due
	if err := version.AgentSkew(version.Kubernetes, request.Version); fresh && err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if fresh { // who renews has the name already, and may come by way of another server
		if err := a.Claims.Name(r.Context(), request.NodeName, peerAddress(r)); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
	}
	answer, status, err := a.admit(r.Context(), request)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		slog.Debug("joining node went away", "component", "join", "node", request.NodeName, "error", err)
	}
}

// mayJoin accepts the token's secret, a bootstrap token, or the node's own
// certificate; status 0: it may.
func (a *Agents) mayJoin(r *http.Request, node string) (reason string, status int) {
	_, secret, given := r.BasicAuth()
	if !given && isNode(r.TLS, node) {
		if a.nodeKeys().Revoked(r.TLS.PeerCertificates[0]) {
			return fmt.Sprintf("node %s was removed from the cluster: it needs a join token to come back", node), http.StatusUnauthorized
		}
		return "", 0
	}
	if !given {
		return "a join token is needed", http.StatusUnauthorized
	}
	user, err := a.Tokens.userOf(r.Context(), secret)
	if err != nil {
		return err.Error(), http.StatusServiceUnavailable
	}
	if user == "" && !a.isBootstrap(r.Context(), secret) {
		a.Tokens.guesses.guessed(r, a.Now(), a.Tokens.Logger)
		return "the token's secret is wrong, or the token was rotated or has ended: take the token from <data-dir>/server/agent-token of a server", http.StatusUnauthorized
	}
	return "", 0
}

// isNode tells whether the peer shows a certificate of the node.
func isNode(state *tls.ConnectionState, node string) bool {
	return state != nil && len(state.VerifiedChains) > 0 && state.PeerCertificates[0].Subject.CommonName == userOf(node)
}

func (a *Agents) nodeKeys() *nodeKeys {
	o := &objects{}
	o.registry.Store(a.Registry)
	return &nodeKeys{objects: o}
}

// isBootstrap tells whether secret is a bootstrap token in force.
func (a *Agents) isBootstrap(ctx context.Context, secret string) bool {
	o := &objects{}
	o.registry.Store(a.Registry)
	user, _, err := auth.BootstrapTokens{Objects: o, Now: a.Now}.CheckToken(ctx, secret, nil)
	return err == nil && user != nil
}

func (a *Agents) admit(ctx context.Context, request joining.Request) (*joining.Answer, int, error) {
	if problems := validation.IsDNS1123Subdomain(request.NodeName); len(problems) > 0 {
		return nil, http.StatusBadRequest, fmt.Errorf("node name %q: %s", request.NodeName, problems[0])
	}
	csr, err := pki.ParseRequest([]byte(request.CSR))
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	addresses, err := a.addresses(ctx, request)
	if err != nil {
		return nil, http.StatusForbidden, err
	}
	if err := claimName(ctx, a.Registry, request.NodeName, csr); err != nil {
		return nil, http.StatusConflict, err
	}
	client, err := a.Keys.CA.Sign(csr.PublicKey, pki.NodeClientProfile(request.NodeName), a.Now())
	if err != nil {
		return nil, http.StatusInternalServerError, err
	}
	serving, err := a.Keys.CA.Sign(csr.PublicKey, pki.NodeServingProfile(request.NodeName, addresses), a.Now())
	if err != nil {
		return nil, http.StatusInternalServerError, err
	}
	return &joining.Answer{
		CA:                 string(a.Keys.CA.PEM()),
		ClientCertificate:  string(client),
		ServingCertificate: string(serving),
		Settings:           a.Settings,
	}, http.StatusOK, nil
}

// maxAddresses of a node stand in its certificate.
const maxAddresses = 16

// addresses are those that the node asks to be certified.
func (a *Agents) addresses(ctx context.Context, request joining.Request) ([]net.IP, error) {
	if len(request.Addresses) > maxAddresses {
		return nil, fmt.Errorf("node %s names %d addresses: at most %d are certified", request.NodeName, len(request.Addresses), maxAddresses)
	}
	var addresses []net.IP
	for _, text := range request.Addresses {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address %q of node %s: it is not an IP address", text, request.NodeName)
		}
		if err := a.Claims.Address(ctx, request.NodeName, corev1.NodeInternalIP, ip); err != nil {
			return nil, err
		}
		addresses = append(addresses, ip.Unmap().AsSlice())
	}
	return addresses, nil
}

// peerAddress is where a request comes from.
func peerAddress(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// decodeOnly reads a body that is one JSON document and nothing else.
func decodeOnly(body io.Reader, into any) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
