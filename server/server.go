package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"orch/internal/joining"
	"orch/internal/link"
	"orch/internal/pki"
	"orch/internal/podnet"
	"orch/internal/version"
	"orch/server/api"
	"orch/server/auth"
	"orch/server/backup"
	"orch/server/connections"
	"orch/server/controllers/loop"
	"orch/server/controllers/nodes"
	"orch/server/fairness"
	"orch/server/join"
	"orch/server/registry"
	"orch/server/registry/admission"
	"orch/server/registry/kinds"
	"orch/store"
)

// Server is one member of the control plane.
type Server struct {
	cfg    Config
	local  chan localAccess // holds one value once the server listens
	served bool             // it has listened once; of Run alone
}

// localAccess is what a process on this machine needs to join.
type localAccess struct{ url, token string }

// New makes a server; Run starts it.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, local: make(chan localAccess, 1)}
}

// Local waits until the server listens and gives its URL on this machine and
// the token that agents join with.
func (s *Server) Local(ctx context.Context) (url, token string, err error) {
	select {
	case access := <-s.local:
		select {
		case s.local <- access:
		default: // the server told it again
		}
		return access.url, agentToken(s.cfg.DataDir, access.token), nil
	case <-ctx.Done():
		return "", "", context.Cause(ctx)
	}
}

// parts of a server that is being started, in the order in which they come up.
type assembly struct {
	cfg      Config
	keys     *join.Keys
	guard    *join.Guard
	registry *registry.Registry
	store    *store.Store
	hub      *link.Hub
	peers    *link.Peers
	podnet   *podnet.Feed
	gate     *gate
	levels   *fairness.Levels
	api      *api.Server
	agents   *join.Agents
	tokens   *join.Rotation
	events   *events

	snapshots *backup.Keeper
}

// Run serves until ctx ends or a part fails, and returns when all has stopped.
func (s *Server) Run(ctx context.Context) error {
	pause := storeRetry
	for {
		began := time.Now()
		err := s.run(ctx)
		var failure *storeFailure
		switch {
		case ctx.Err() != nil:
			return err
		case errors.Is(err, store.ErrSuperseded):
			// The store has put its state aside and knows whom to join.
			s.cfg.Logger.Warn("the cluster was recovered without this server, which joins it again; its state of before is kept beside the new one",
				"component", "server", "store", storeDir(s.cfg.DataDir))
			continue
		case !errors.As(err, &failure) || errors.Is(err, store.ErrRemoved) || !s.served || s.cfg.Disabled("agent"):
			return err
		}
		// This machine's pods and probes need no server: the disk may get well.
		if time.Since(began) > longestStoreRetry {
			pause = storeRetry
		}
		s.cfg.Logger.Error("the store has failed; the server tries again, and the node goes on meanwhile",
			"component", "server", "error", err, "after", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, longestStoreRetry)
	}
}

// A store whose disk errs is opened again after so long, and ever less often.
const (
	storeRetry        = time.Second
	longestStoreRetry = 30 * time.Second
)

// storeFailure is an end of the server's for which its store is the cause.
type storeFailure struct{ err error }

func (e *storeFailure) Error() string { return "store: " + e.err.Error() }
func (e *storeFailure) Unwrap() error { return e.err }

func (s *Server) run(ctx context.Context) error {
	// The port is taken first: a busy one is the commonest mistake, and nothing
	// must have been touched when it is reported.
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := join.TakePending(filepath.Join(s.cfg.DataDir, "server")); err != nil {
		return fmt.Errorf("keys of a restored snapshot: %w", err)
	}
	if err := s.joinCluster(ctx); err != nil {
		return err
	}
	a, err := assemble(s.cfg)
	if err != nil {
		return err
	}
	// From here on there are a cluster's keys, and soon objects with its addresses.
	if err := join.KeepSettings(s.cfg.serverDir(), s.cfg.settings()); err != nil {
		return err
	}
	// The store outlives everything that writes to it: it has a context of its
	// own, which ends when all others have stopped.
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	stored := make(chan error, 1)
	group, ctx := errgroup.WithContext(ctx)
	var storing errgroup.Group
	storing.Go(func() error {
		err := a.store.Run(storeCtx)
		stored <- err
		return err
	})
	group.Go(func() error { // a store that fails ends the server
		select {
		case err := <-stored:
			return &storeFailure{err}
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error { return a.serve(ctx, listener, s.local) })
	err = group.Wait()
	select {
	case <-a.gate.opened:
		s.served = true
	default:
	}
	stopStore()
	if storeErr := storing.Wait(); err == nil || errors.Is(storeErr, store.ErrSuperseded) {
		err = storeErr
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	host := ""
	if s.cfg.BindAddress != nil {
		host = s.cfg.BindAddress.String()
	}
	address := net.JoinHostPort(host, fmt.Sprint(s.cfg.Port))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w (another server may be running: choose another --https-listen-port or --bind-address)", address, err)
	}
	return listener, nil
}

// assemble makes all parts; nothing runs yet, but keys are read or made.
func assemble(cfg Config) (*assembly, error) {
	a := &assembly{
		cfg: cfg, hub: link.NewHub(), podnet: podnet.NewFeed(prefixOf(cfg.ClusterCIDR)), gate: newGate(), levels: fairness.NewLevels(),
	}
	serviceIP := join.FirstServiceIP(cfg.ServiceCIDR)
	hosts := append([]string{cfg.NodeName, cfg.NodeIP.String(), cfg.AdvertiseAddress.String()}, cfg.TLSSANs...)
	var err error
	a.keys, err = join.LoadKeys(join.Config{
		Dir: filepath.Join(cfg.DataDir, "server"), Hosts: hosts, ServiceIP: serviceIP, Domain: cfg.ClusterDomain,
		Name: cfg.NodeName, Token: cfg.Token, AgentToken: cfg.AgentToken, Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	if a.guard, err = join.NewGuard(a.keys, cfg.ClusterDomain, time.Now); err != nil {
		return nil, err
	}
	a.hub.Revoked = a.guard.Revoked
	chain, err := admission.Chain(admission.Config{
		Authorizer: a.guard.Authorizer, Escalation: a.guard.Escalation(), Claims: a.claims(), Now: time.Now,
	})
	if err != nil {
		return nil, fmt.Errorf("admission plugins: %w", err)
	}
	if a.registry, err = registry.New(registry.Config{
		Resources: kinds.Table(a.tableConfig()), Encryption: a.keys.AtRest, Admission: chain,
	}); err != nil {
		return nil, err
	}
	a.peers = link.NewPeers(a.address(), a.keys.Peer, a.keys.Peers.Pool())
	a.store = store.New(store.Config{
		Dir: storeDir(cfg.DataDir), Codec: a.registry.StoreCodec(), Lane: a.registry.StoreLane, Logger: cfg.Logger,
		Name: cfg.NodeName, Raft: a.peers.Layer(link.ProtocolRaft), Peers: a.peers.Layer(link.ProtocolStore), Join: cfg.joinAddresses(),
		FlushDelay: cfg.FlushDelay, LogBytes: cfg.LogBytes, HistorySize: cfg.HistorySize,
	})
	a.registry.UseStore(a.store)
	a.guard.Bind(a.registry)
	a.events = newEvents(a.registry)
	return a, errors.Join(a.assembleAPI(serviceIP), a.assembleSnapshots())
}

func (a *assembly) assembleAPI(serviceIP net.IP) error {
	a.tokens = &join.Rotation{
		Dir: filepath.Join(a.cfg.DataDir, "server"), Keys: a.keys, Registry: a.registry, Now: time.Now, Logger: a.cfg.Logger,
		Sync: func(ctx context.Context) error { _, err := a.store.Sync(ctx); return err },
	}
	a.agents = &join.Agents{Keys: a.keys, Tokens: a.tokens, Registry: a.registry, Short: a.guard.Tokens, Claims: a.claims(), Now: time.Now, Settings: a.cfg.settings()}
	a.agents.Settings.Servers = []string{fmt.Sprintf("https://%s", a.address())}
	openIDConfig, err := a.guard.Issuer.OpenIDConfig(a.address())
	if err != nil {
		return err
	}
	openIDKeys, err := a.guard.Issuer.OpenIDKeys()
	if err != nil {
		return err
	}
	a.api = api.New(api.Config{
		Registry: a.registry, Authenticator: a.guard.Authenticator, Authorizer: a.guard.Authorizer,
		Nodes: a.hub, Version: version.Info(), Logger: a.cfg.Logger, Levels: a.levels,
		Paths: map[string]http.Handler{
			auth.OpenIDConfigPath: openIDConfig,
			auth.OpenIDKeysPath:   openIDKeys,
		},
		Checks: []api.Check{
			{Name: "store", Probe: func(ctx context.Context) error { _, err := a.store.Sync(ctx); return err }},
			{Name: "store-writable", Ready: true, Probe: func(context.Context) error { return a.store.ReadOnly() }},
			{Name: "authorizer", Ready: true, Probe: a.authorizerReady},
		},
	})
	return nil
}

func (a *assembly) authorizerReady(context.Context) error {
	select {
	case <-a.guard.Synced():
		return nil
	default:
		return errors.New("roles are not read yet")
	}
}

func (a *assembly) address() string {
	return net.JoinHostPort(a.cfg.AdvertiseAddress.String(), fmt.Sprint(a.cfg.Port))
}

// serve runs everything on top of the store.
func (a *assembly) serve(ctx context.Context, listener net.Listener, local chan<- localAccess) error {
	group, ctx := errgroup.WithContext(ctx)
	// Other servers reach the store by the same port, and it may need them to
	// come up. The gate holds all other requests back until then.
	group.Go(func() error { return a.serveHTTP(ctx, listener) })
	group.Go(func() error { return a.keys.Serving.Run(ctx) })
	group.Go(func() error { return a.keys.Peer.Run(ctx) })
	select {
	case <-a.store.Ready():
	case <-ctx.Done():
		return group.Wait()
	}
	// Authorization follows the roles before bootstrap writes them, so that it
	// knows them when the first request comes.
	group.Go(func() error { return a.guard.Run(ctx) })
	group.Go(func() error { return a.guard.FollowCredentials(ctx, a.recheck) })
	group.Go(func() error { return registry.Of[*corev1.Node](a.registry).Watch(ctx, a.podnet.OnNode, a.podnet.Known) })
	group.Go(func() error { return a.events.run(ctx) })
	group.Go(func() error { return a.store.Lead(ctx, a.lead) })
	if !a.cfg.Disabled("agent") {
		group.Go(func() error { return loop.Run(ctx, a.cfg.Logger, nodes.ControlPlane(a.registry, a.cfg.NodeName)) })
	}
	select {
	case <-a.guard.Synced():
	case <-ctx.Done():
		return group.Wait()
	}
	if err := join.Bootstrap(ctx, a.registry, a.cluster()); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	if err := a.ensureDNSService(ctx); err != nil {
		return err
	}
	loopback := "https://" + net.JoinHostPort(a.loopback(), fmt.Sprint(a.cfg.Port))
	if a.cfg.Kubeconfig != "" {
		kubeconfig := join.Kubeconfig{Path: a.cfg.Kubeconfig, Mode: a.cfg.KubeconfigMode, Server: loopback}
		if err := kubeconfig.Write(a.keys.CA, time.Now()); err != nil {
			return err
		}
	}
	if err := a.tokens.CatchUp(); err != nil {
		return err
	}
	a.gate.open()
	group.Go(func() error { return a.reportReadOnly(ctx) })
	group.Go(func() error { return a.tokens.Run(ctx) })
	group.Go(func() error { return a.snapshots.Run(ctx) })
	select {
	case local <- localAccess{loopback, a.keys.Tokens.Agent.String()}:
	default: // told before the server began anew
	}
	a.cfg.Logger.Info("server is listening", "component", "server", "address", a.address(), "version", version.Orch)
	return group.Wait()
}

// handler serves joining before the API: whoever joins has no identity yet. It
// is no ServeMux, which would clean the paths that the API's proxies pass on.
func (a *assembly) handler() http.Handler {
	agents := a.agents.Handler()
	servers := &join.Servers{Dir: filepath.Join(a.cfg.DataDir, "server"), Keys: a.keys, Tokens: a.tokens, Settings: a.agents.Settings}
	gated := a.gate.handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == joining.PathAgent:
			agents.ServeHTTP(w, r)
		case r.URL.Path == joining.PathServer: // the tokens in force are in the store
			servers.ServeHTTP(w, r)
		case r.URL.Path == pathTokens:
			a.guarded(a.serveTokens)(w, r)
		case strings.HasPrefix(r.URL.Path, pathMembers):
			a.guarded(a.serveMembers)(w, r)
		case r.URL.Path == pathSnapshots:
			a.guarded(a.serveSnapshots)(w, r)
		case r.URL.Path == podnet.Path:
			a.guarded(a.servePodnet)(w, r)
		default:
			a.api.ServeHTTP(w, r)
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == joining.PathCA {
			agents.ServeHTTP(w, r)
			return
		}
		gated.ServeHTTP(w, r)
	})
}

// loopback is the address at which programs on this machine reach the server.
func (a *assembly) loopback() string {
	if ip := a.cfg.BindAddress; ip != nil && !ip.IsUnspecified() {
		return ip.String()
	}
	return "127.0.0.1"
}

func (a *assembly) cluster() join.Cluster {
	return join.Cluster{
		CA: a.keys.CA.PEM(), ServiceCIDR: a.cfg.ServiceCIDR, ServiceIP: join.FirstServiceIP(a.cfg.ServiceCIDR),
		Port: int32(a.cfg.Port),
	}
}

// drainTime is how long requests under way may take when the server stops.
const drainTime = 5 * time.Second

func (a *assembly) serveHTTP(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: a.handler(), TLSConfig: a.keys.TLSConfig(link.Protocol), ErrorLog: quietTLS(a.cfg.Logger)}
	if err := connections.Configure(server); err != nil {
		return err
	}
	server.TLSNextProto[link.Protocol] = a.hub.ServeTLS
	a.peers.Accept(server)
	door := connections.NewDoor(connections.DefaultLimits(), a.knownPeer, a.cfg.Logger)
	server.TLSConfig = door.Check(server.TLSConfig)
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	var closing errgroup.Group
	closing.Go(func() error {
		defer close(stopped)
		<-ctx.Done()
		// Another server takes the lead before this one's requests have ended.
		a.store.Resign()
		// Watches and streams never end by themselves; other requests may finish.
		a.api.Close()
		a.podnet.Close()
		a.hub.Close()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		// They may need the other servers.
		a.gate.drain(drain)
		a.peers.Close()
		if err := server.Shutdown(drain); err != nil {
			return server.Close()
		}
		return nil
	})
	err := server.ServeTLS(door.Listen(listener), "", "")
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, closing.Wait())
}

// knownPeer names the node, server or administrator that the certificates on a
// connection are of; "": it is a stranger's.
func (a *assembly) knownPeer(state tls.ConnectionState) string {
	if len(state.VerifiedChains) == 0 {
		return ""
	}
	switch state.NegotiatedProtocol {
	case link.ProtocolRaft, link.ProtocolStore:
		return pki.PeerName // their own CA signs for servers alone
	}
	cert := state.PeerCertificates[0]
	groups := cert.Subject.Organization
	if slices.Contains(groups, "system:masters") || slices.Contains(groups, "system:nodes") && !a.guard.Revoked(cert) {
		return cert.Subject.CommonName
	}
	return ""
}
