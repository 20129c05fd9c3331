package server

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/internal/joining"
	"orch/internal/version"
	"orch/server/join"
	"orch/store"
)

// joinCluster makes this server one of the cluster that cfg.Join names, unless
// it has the keys of a cluster already, and takes over that cluster's settings.
func (s *Server) joinCluster(ctx context.Context) error {
	dir := s.cfg.serverDir()
	settings, err := join.Settings(dir)
	if err != nil {
		return err
	}
	s.cfg.resumeJoin(settings)
	if s.cfg.Join != "" && !join.Joined(dir) {
		request := joining.ServerRequest{Name: s.cfg.NodeName, Version: version.Kubernetes}
		if err := join.Fetch(ctx, dir, s.cfg.Join, s.cfg.Token, request, s.cfg.fits, s.cfg.Logger); err != nil {
			return err
		}
		if settings, err = join.Settings(dir); err != nil {
			return err
		}
	}
	return s.cfg.settle(settings)
}

// fits tells whether this server can be one of a cluster with these settings.
func (c *Config) fits(s joining.Settings) error {
	whole := *c
	if err := whole.settle(&s); err != nil {
		return err
	}
	return whole.validateNetworks()
}

// resumeJoin has a server that began to join go on, should it be started without
// --join now: it would found a cluster of its own with the other one's keys. A
// server that was let in does not ask.
func (c *Config) resumeJoin(s *joining.Settings) {
	if c.Join == "" && s != nil && len(s.Servers) > 0 {
		c.Join = s.Servers[0]
	}
}

// joinAddresses is where a new server asks to be let in.
func (c *Config) joinAddresses() []string {
	server, err := url.Parse(c.Join)
	if c.Join == "" || err != nil {
		return nil
	}
	if server.Port() == "" {
		return []string{net.JoinHostPort(server.Hostname(), "443")}
	}
	return []string{server.Host}
}

// absence is how long a server may be away before the kubernetes Service leaves
// it out: after a change of leaders all others connect anew.
const absence = 2 * time.Second

// publishServers keeps the kubernetes Service leading to the servers that are
// alive, on the leader.
func (a *assembly) publishServers(ctx context.Context) error {
	published := make(map[string]time.Time) // when the address was last seen alive
	began := time.Now()
	for {
		changed := a.store.MembersChanged()
		members, err := a.store.Members(ctx)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		now := time.Now()
		cluster, again := a.cluster(), time.Duration(0)
		for _, m := range members {
			host, port, err := net.SplitHostPort(m.Address)
			if err != nil || port != strconv.Itoa(a.cfg.Port) {
				continue // a Service has one target port
			}
			if m.Alive {
				published[host] = now
			}
			seen, ok := published[host]
			if !ok {
				seen = began
			}
			if m.Voter && !m.Alive && now.Sub(seen) < absence {
				again = max(again, absence-now.Sub(seen))
			} else if !m.Alive {
				continue
			}
			cluster.Servers = append(cluster.Servers, net.ParseIP(host))
		}
		slices.SortFunc(cluster.Servers, func(a, b net.IP) int { return slices.Compare(a.To16(), b.To16()) })
		if err := join.PublishServers(ctx, a.registry, cluster); err != nil {
			a.cfg.Logger.Warn("addresses of the servers not published, trying again", "component", "server", "error", err)
			again = absence
		}
		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-changed:
		case <-timer:
		case <-ctx.Done():
			return nil
		}
	}
}

// ignoreEnd drops an error that the end of ctx has caused.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pathMembers is the endpoint of `orch member`: GET lists, DELETE of a name
// removes, POST to <name>/promote promotes.
const pathMembers = "/v1-orch/members"

func (a *assembly) serveMembers(w http.ResponseWriter, r *http.Request) {
	name, action, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, pathMembers), "/"), "/")
	var members []store.Member
	var err error
	switch {
	case r.Method == http.MethodGet && name == "":
		members, err = a.store.Members(r.Context())
	case r.Method == http.MethodDelete && name != "" && action == "":
		err = a.store.RemoveMember(r.Context(), name)
	case r.Method == http.MethodPost && action == "promote":
		err = a.store.PromoteMember(r.Context(), name)
	default:
		http.NotFound(w, r)
		return
	}
	switch {
	case errors.Is(err, store.ErrNoMember):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, store.ErrMember):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(members) // the client went away
	}
}

// servePodnet tells a node where the pods of all others are.
func (a *assembly) servePodnet(w http.ResponseWriter, r *http.Request) {
	level, peer := a.levels.Nodes, peerOf(r)
	if !level.Hold(peer, podnetBytes) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "this node has too many streams open", http.StatusTooManyRequests)
		return
	}
	defer level.Drop(peer, podnetBytes)
	a.podnet.ServeHTTP(w, r)
}

// podnetBytes is about what a stream of a node holds.
const podnetBytes = 32 << 10

// peerOf names who asks: by certificate, or where there is none by address.
func peerOf(r *http.Request) string {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return r.TLS.PeerCertificates[0].Subject.CommonName
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return host
}

// guarded lets those through to a path of orch's own who may do everything, or
// who are given the path by RBAC or as nodes. It is the API's own door, so that
// impersonation counts here, too.
func (a *assembly) guarded(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		vouched, done, err := a.api.Vouch(r)
		if err != nil {
			status := http.StatusInternalServerError
			if known := apierrors.APIStatus(nil); errors.As(err, &known) {
				status = int(known.Status().Code)
			}
			http.Error(w, err.Error(), status)
			return
		}
		defer done()
		serve(w, vouched)
	}
}
