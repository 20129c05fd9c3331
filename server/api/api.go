// Package api is the wire: it turns HTTP requests into calls of the registry
// and the registry's answers into the JSON, YAML and protobuf that Kubernetes
// clients expect, byte for byte where they care.
package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/version"

	"orch/server/auth"
	"orch/server/fairness"
	"orch/server/registry"
)

// NodeDialer reaches the agent of a node over whatever connection the agent
// keeps to the servers.
type NodeDialer interface {
	// Transport speaks HTTP with the node's agent; the host of a request's URL
	// is ignored.
	Transport(nodeName string) (http.RoundTripper, error)
	// Dial gives one connection to the agent's HTTP server, for upgraded streams.
	Dial(ctx context.Context, nodeName string) (net.Conn, error)
}

// Check is one line of /livez and /readyz.
type Check struct {
	Name  string
	Probe func(ctx context.Context) error
	Ready bool // counts for /readyz alone, not for /livez
}

// Config of the wire. Registry is required; without an Authenticator or an
// Authorizer every request is let through, which is for tests.
type Config struct {
	Registry      *registry.Registry
	Authenticator auth.Authenticator
	Authorizer    auth.Authorizer
	Nodes         NodeDialer // nil: streams to nodes answer 503
	Checks        []Check
	Version       version.Info
	Paths         map[string]http.Handler // further paths that are not resources (the issuer's key set)
	Logger        *slog.Logger            // nil: slog.Default

	Levels         *fairness.Levels // who waits for whom; nil: fairness.NewLevels
	RequestTimeout time.Duration    // of requests that are not streams; 0: 60 s
	StallTime      time.Duration    // how long the client of a stream may take to read; 0: 30 s
	MinWatch       time.Duration    // watches without timeoutSeconds last between this and twice this; 0: 30 min
}

// maxBody is the largest request body that is read.
const maxBody = 3 * 1024 * 1024

// Server answers the API. It is an http.Handler.
type Server struct {
	cfg       Config
	log       *slog.Logger
	reads     gauges
	writes    gauges
	verifying *fairness.Level // tokens
	codec     *codec
	discovery *discovery
	openapi   *openapi
	metrics   *metrics
	streams   streams
	lasting   lasting
}

// New makes the handler of the whole API.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Levels == nil {
		cfg.Levels = fairness.NewLevels()
	}
	setDefault(&cfg.RequestTimeout, time.Minute)
	setDefault(&cfg.StallTime, stallTime)
	setDefault(&cfg.MinWatch, 30*time.Minute)
	s := &Server{
		cfg:   cfg,
		log:   cfg.Logger.With("component", "api"),
		codec: newCodec(cfg.Registry.Scheme()),
		verifying: fairness.NewLevel("authentication", fairness.Limits{
			Seats: 2 * runtime.GOMAXPROCS(0), Queued: 4000, FlowQueued: 1000, Patience: fairness.Patience,
		}),
	}
	s.discovery = newDiscovery(cfg.Registry)
	s.openapi = newOpenAPI(cfg.Registry, cfg.Version)
	s.metrics = newMetrics(s)
	return s
}

func setDefault(field *time.Duration, value time.Duration) {
	if *field == 0 {
		*field = value
	}
}

// Close ends the open watches and node streams, so that an http.Server can
// shut down without waiting for them. Watches that come later end at once.
func (s *Server) Close() { s.streams.close() }
