// Package node keeps this machine's Node object and its lease: it registers the
// node, reports what the machine has and how it is, and evicts pods when the
// machine runs out of memory, disk or processes.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How often things happen, as upstream has them.
const (
	checkInterval  = 10 * time.Second // between looks at the machine
	reportInterval = 5 * time.Minute  // between reports of an unchanged node
	imagesInterval = time.Minute      // between lists of the images
	// settleTime is how long a node that was Ready counts as Ready after the agent
	// has started again, while runtime and network come up. They wait for a server,
	// too, and that one hangs is noticed after 15 s.
	settleTime = 20 * time.Second
)

// Why Run ends before its context does.
var (
	// ErrShuttingDown says that the machine goes down: the node is not Ready at once.
	ErrShuttingDown = errors.New("node is shutting down")
	// ErrRemoved says that somebody deleted the Node.
	ErrRemoved = errors.New("the node was deleted from the cluster")
	// ErrRefused says that the API does not accept the node's credentials.
	ErrRefused = errors.New("the API refuses the node's credentials")
)

// refusalsBelieved is how many requests in a row must be refused: a server that
// lags behind may not know a new node yet. With the pauses between them they
// take some seconds.
const refusalsBelieved = 7

// Recorder records API events.
type Recorder interface {
	Event(object kruntime.Object, eventType, reason, message string)
}

// Evictor stops a pod for good and marks it failed.
type Evictor interface {
	Evict(uid types.UID, reason, message, condition string, grace *int64)
}

// Config of a Manager.
type Config struct {
	Client       kubernetes.Interface
	NodeName     string
	NodeIPs      func() []net.IP // the primary one first; nil: none
	ExternalIPs  []net.IP
	Labels       map[string]string
	Taints       []corev1.Taint // given to a node that is new
	InstanceType string         // "": no such label
	PodCIDR      string         // "": left to a controller
	ProviderID   string
	KubeletPort  int32 // where the API finds this node's kubelet endpoint; 0: nowhere

	DataDir  string // whose file system is the node's
	MaxPods  int64  // 0: 110
	Reserved corev1.ResourceList

	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	OnReady func() // called once, when the API knows that the node is ready; nil: nothing
	// Ready tells what else keeps pods from running here, such as the network;
	// nil: nothing.
	Ready func() error

	Events Recorder // nil: events are dropped

	// What eviction needs; without Evictor there is none.
	Evictor Evictor
	Pods    func() []*corev1.Pod // those that have something running
	Usage   func(ctx context.Context) map[types.UID]Usage
	// Reclaim frees disk space by removing what nobody uses; it gives the bytes freed.
	Reclaim func(ctx context.Context, now time.Time, want int64) (int64, error)

	Machine *Machine     // nil: this one
	Logger  *slog.Logger // nil: slog.Default
	Now     func() time.Time
}

// Manager keeps one Node object.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	machine  *Machine
	node     atomic.Pointer[corev1.Node] // as the API last showed it
	wake     chan struct{}               // a look at the machine is wanted now
	pressure pressure                    // owned by the status loop
	images   imageList                   // owned by the status loop
	settles  atomic.Pointer[time.Time]   // since then: registered, or the API did not answer
	removed  chan struct{}               // closed when the Node is deleted
	goneOnce sync.Once                   // guards its closing
	missed   atomic.Bool                 // a server has shown no such Node
}

// New makes a manager; nothing happens before Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Client == nil || cfg.NodeName == "" || cfg.Runtime == nil || cfg.Images == nil {
		return nil, errors.New("node: client, node name, runtime and images are all needed")
	}
	if cfg.OnReady == nil {
		cfg.OnReady = func() {}
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Events == nil {
		cfg.Events = noEvents{}
	}
	if cfg.NodeIPs == nil {
		cfg.NodeIPs = func() []net.IP { return nil }
	}
	if cfg.MaxPods == 0 {
		cfg.MaxPods = 110
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Manager{
		cfg: cfg, machine: cfg.Machine,
		log:  cfg.Logger.With("component", "node"),
		wake: make(chan struct{}, 1), removed: make(chan struct{}),
	}
	m.settles.Store(&time.Time{})
	return m, nil
}

// Node gives this node's API object as last seen, nil while it is not known. It
// is shared: do not change it.
func (m *Manager) Node() *corev1.Node { return m.node.Load() }

// Wake asks for a look at the machine now, because something changed that the
// node's status tells about. It never blocks.
func (m *Manager) Wake() {
	select {
	case m.wake <- struct{}{}:
	default: // one is on its way
	}
}

// Run registers the node and reports on it until ctx ends, the Node is deleted
// (ErrRemoved) or the API refuses this node (ErrRefused). The order: the
// machine is read first, for a node is registered with its status; lease and
// status follow the registration.
func (m *Manager) Run(ctx context.Context) error {
	if m.machine == nil {
		machine, err := ReadMachine("/")
		if err != nil {
			return err
		}
		m.machine = machine
	}
	if err := m.register(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	m.settle()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.renewLease(ctx) })
	group.Go(func() error { return m.watchNode(ctx) })
	group.Go(func() error { return m.report(ctx) })
	group.Go(func() error { return m.watchPressure(ctx) })
	group.Go(func() error {
		select {
		case <-m.removed:
			return ErrRemoved
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// settle has a node that was Ready count as Ready for the settleTime from now on.
func (m *Manager) settle() {
	now := m.cfg.Now()
	m.settles.Store(&now)
}

// Event records something that happened to the node.
func (m *Manager) Event(eventType, reason, message string) { m.event(eventType, reason, message) }

func (m *Manager) event(eventType, reason, message string) {
	m.cfg.Events.Event(&corev1.ObjectReference{Kind: "Node", Name: m.cfg.NodeName, UID: types.UID(m.cfg.NodeName)}, eventType, reason, message)
}

type noEvents struct{}

func (noEvents) Event(kruntime.Object, string, string, string) {}
