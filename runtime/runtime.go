// Package runtime gives the agent a container runtime behind the CRI: the
// containerd embedded in this process, or any other that answers on a socket,
// and keeps the images that a node brings along.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/runtime/embedded"
)

// PauseImage is the embedded image that holds a pod's namespaces. The names of
// all embedded images begin with embeddedDomain.
const (
	PauseImage     = embeddedDomain + "pause:1"
	embeddedDomain = "orch.local/"
)

// maxMessage bounds CRI messages, as upstream does: a list of every container
// of a big node is larger than gRPC's 4 MiB.
const maxMessage = 16 << 20

// connectTimeout is how long an external runtime may take to appear, so that
// orch may be started before it.
const connectTimeout = 30 * time.Second

// Config says which runtime to use and where it keeps its things.
type Config struct {
	DataDir    string // of the node; everything of the runtime is under <DataDir>/agent
	Endpoint   string // CRI socket of another runtime; "": the embedded containerd
	PauseImage string // "": the embedded one
	CNIBinDir  string // "": <DataDir>/agent/bin, where the embedded CNI helper is
	CNIConfDir string // "": <DataDir>/agent/cni/net.d
	Registries string // registries.yaml with mirrors and credentials; absent or "": none
	Logger     *slog.Logger
}

// Validate names the flag that is wrong.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.DataDir) {
		return fmt.Errorf("--data-dir: %q is not an absolute path", c.DataDir)
	}
	if scheme, _, ok := strings.Cut(c.Endpoint, "://"); ok && scheme != "unix" {
		return fmt.Errorf("--container-runtime-endpoint: %q: only unix sockets are supported", c.Endpoint)
	}
	if path := strings.TrimPrefix(c.Endpoint, "unix://"); path != "" && !filepath.IsAbs(path) {
		return fmt.Errorf("--container-runtime-endpoint: %q: give the socket's absolute path, such as unix:///run/crio/crio.sock", c.Endpoint)
	}
	return nil
}

// Runtime is the container runtime of this node.
type Runtime struct {
	cfg    Config
	layout layout
	log    *slog.Logger
	conn   *grpc.ClientConn
	ready  chan struct{}
	embed  bool

	imagesDone chan struct{} // closed when the embedded images were imported, or could not be

	users *userFileCheck // nil: not the embedded runtime

	mu       sync.Mutex
	lastUsed map[string]time.Time // by image ID, as seen by GarbageCollect; guarded by mu
}

// New prepares a runtime; nothing is started before Run.
func New(cfg Config) (*Runtime, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := newLayout(cfg.DataDir)
	if cfg.PauseImage == "" {
		cfg.PauseImage = PauseImage
	}
	if cfg.CNIBinDir == "" {
		cfg.CNIBinDir = l.bin
	}
	if cfg.CNIConfDir == "" {
		cfg.CNIConfDir = l.cniConf
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	r := &Runtime{
		cfg: cfg, layout: l,
		log:        cfg.Logger.With("component", "runtime"),
		ready:      make(chan struct{}),
		embed:      cfg.Endpoint == "",
		imagesDone: make(chan struct{}),
		lastUsed:   map[string]time.Time{},
	}
	socket := l.socket
	if !r.embed {
		socket = strings.TrimPrefix(cfg.Endpoint, "unix://")
	}
	conn, err := dial(socket)
	if err != nil {
		return nil, fmt.Errorf("--container-runtime-endpoint: %w", err)
	}
	r.conn = conn
	if r.embed {
		r.users = &userFileCheck{store: &ImageStore{conn: conn, cri: runtimeapi.NewImageServiceClient(conn)}, known: map[string]error{}}
	}
	return r, nil
}

// dial prepares a connection to a unix socket; it is made with the first call.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: time.Second,
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.6, MaxDelay: 3 * time.Second},
		}))
}

// Runtime is the CRI runtime service. Calls fail until Ready.
func (r *Runtime) Runtime() runtimeapi.RuntimeServiceClient {
	return runtimeapi.NewRuntimeServiceClient(r.conn)
}

// Images is the CRI image service. A pull of an embedded image succeeds without
// a registry, whatever the pull policy says.
func (r *Runtime) Images() runtimeapi.ImageServiceClient {
	return &imageService{
		ImageServiceClient: runtimeapi.NewImageServiceClient(r.conn),
		embedded:           func(name string) bool { return r.embed && strings.HasPrefix(name, embeddedDomain) },
		done:               r.imagesDone,
		users:              r.users,
	}
}

// Ready is closed once the runtime answers and pods may be started.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// Embedded tells whether the runtime is the one inside this process.
func (r *Runtime) Embedded() bool { return r.embed }

// Run starts the runtime and serves until ctx ends or it fails. Containers keep
// running when it returns; the next Run adopts them.
func (r *Runtime) Run(ctx context.Context) error {
	defer r.conn.Close()
	if r.embed {
		return r.runEmbedded(ctx)
	}
	version, err := r.connect(ctx)
	if err != nil {
		return fmt.Errorf("container runtime endpoint %s: %w", r.cfg.Endpoint, err)
	}
	r.log.Info("using external container runtime", "endpoint", r.cfg.Endpoint, "name", version.RuntimeName, "version", version.RuntimeVersion)
	close(r.ready)
	<-ctx.Done()
	return nil
}

// connect waits for the runtime to answer and refuses one that does not speak
// the CRI version that we do.
func (r *Runtime) connect(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	version, err := r.Runtime().Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil, errors.New("it does not serve the CRI (runtime.v1): is the CRI plugin disabled there, or is this another service's socket?")
	case err != nil:
		return nil, fmt.Errorf("no answer: is the runtime running, and is this its socket? %w", err)
	case version.RuntimeApiVersion != "v1":
		return nil, fmt.Errorf("%s %s speaks CRI %s, orch needs v1", version.RuntimeName, version.RuntimeVersion, version.RuntimeApiVersion)
	}
	return version, nil
}

// runEmbedded starts containerd in this process. The order: what containerd
// needs on disk, then containerd itself, then the pause image, without which no
// pod can start. The other images hold nothing up; archives that the operator
// laid out come last.
func (r *Runtime) runEmbedded(ctx context.Context) error {
	manifest, err := embedded.Load()
	if err != nil {
		return err
	}
	unlock, err := r.layout.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	if err := manifest.UnpackPrograms(r.layout.bin); err != nil {
		return fmt.Errorf("unpack embedded programs: %w", err)
	}
	pinned := embeddedRefs(manifest)
	pinned["sandbox"] = r.cfg.PauseImage
	server, err := r.startContainerd(ctx, pinned)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	defer server.stop()
	if _, err := r.connect(ctx); err != nil {
		return errors.Join(fmt.Errorf("start containerd: %w", err), server.failure())
	}
	if err := r.endOrphans(ctx); err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := r.importEmbedded(running, manifest, func() { close(r.ready) }); err != nil {
			return err
		}
		return r.watchArchives(running)
	})
	group.Go(func() error { return r.endExecs(running) })
	for _, w := range server.rewriters {
		group.Go(func() error { return w.run(running) })
	}
	group.Go(func() error {
		select {
		case <-server.failed:
			return fmt.Errorf("containerd: %w", server.failure())
		case <-running.Done():
			return nil
		}
	})
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil // told to stop: what failed on the way was cut short by that
}
