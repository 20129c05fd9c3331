package overlay

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Overlay keeps the ways to the pods of all other nodes.
type Overlay struct {
	self   string // this node's name
	device *Device
	client kubernetes.Interface
	log    *slog.Logger
	wake   chan struct{} // holds one token when there is work

	mu     sync.Mutex      // guards what follows
	peers  map[string]Peer // by node
	listed bool            // peers is complete

	applied *entries // what the kernel holds; nil: not known. Run's alone.
}

// New returns the overlay of the node self; Run makes it work.
func New(self string, device *Device, client kubernetes.Interface, log *slog.Logger) *Overlay {
	return &Overlay{self: self, device: device, client: client, log: log, wake: make(chan struct{}, 1), peers: make(map[string]Peer)}
}

// Retries after a failure wait this long, doubling up to the second.
const (
	retryFirst = time.Second
	retryMax   = 30 * time.Second
)

// Run follows the nodes until ctx ends. What it set stays behind: pods talk on
// without this process.
func (o *Overlay) Run(ctx context.Context) error {
	var following sync.WaitGroup
	following.Go(func() { o.follow(ctx) })
	defer following.Wait()
	var retry <-chan time.Time
	delay := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-retry:
		}
		if err := o.sync(); err != nil {
			o.applied = nil
			o.log.Warn("the ways to pods on other nodes are not complete, will retry", "error", err, "after", delay)
			retry, delay = time.After(delay), min(2*delay, retryMax)
			continue
		}
		retry, delay = nil, retryFirst
	}
}

// sync brings the kernel to what the peers want. Before all nodes have been
// listed nothing is done, lest the ways of an earlier process be removed; a
// node that is alone never gets the link.
func (o *Overlay) sync() error {
	o.mu.Lock()
	peers, listed := maps.Clone(o.peers), o.listed
	o.mu.Unlock()
	if !listed {
		return nil
	}
	if o.applied == nil {
		if len(peers) == 0 {
			return Remove(o.device.Name)
		}
		if err := o.device.ensure(); err != nil {
			return err
		}
		held, err := o.device.entries()
		if err != nil {
			return err
		}
		o.applied = &held
	}
	wanted := plan(peers)
	if err := o.device.apply(*o.applied, wanted); err != nil {
		return err
	}
	o.applied = &wanted
	return nil
}

// follow keeps peers up to date.
func (o *Overlay) follow(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(o.log.Handler()))
	nodes := o.client.CoreV1().Nodes()
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return nodes.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return nodes.Watch(ctx, options)
		},
	}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(source, o.client), &corev1.Node{}, feed{o},
		cache.ReflectorOptions{Name: "overlay"}).RunWithContext(ctx)
}

// feed takes the reflector's deliveries.
type feed struct{ o *Overlay }

func (f feed) Add(object any) error    { f.set(object.(*corev1.Node)); return nil }
func (f feed) Update(object any) error { f.set(object.(*corev1.Node)); return nil }
func (f feed) Resync() error           { return nil }

func (f feed) Delete(object any) error {
	if lost, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = lost.Obj
	}
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	delete(f.o.peers, object.(*corev1.Node).Name)
	f.o.changed()
	return nil
}

// Replace takes a whole new list: what is not in it is forgotten.
func (f feed) Replace(objects []any, _ string) error {
	peers := make(map[string]Peer, len(objects))
	for _, object := range objects {
		n := object.(*corev1.Node)
		if p, ok := peerOf(n); ok && n.Name != f.o.self {
			peers[n.Name] = p
		}
	}
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	f.o.peers, f.o.listed = peers, true
	f.o.changed()
	return nil
}

// set notes one node; most changes of nodes change nothing here.
func (f feed) set(n *corev1.Node) {
	if n.Name == f.o.self {
		return
	}
	p, ok := peerOf(n)
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	if old, known := f.o.peers[n.Name]; known == ok && old == p {
		return
	}
	if ok {
		f.o.peers[n.Name] = p
	} else {
		delete(f.o.peers, n.Name)
	}
	f.o.changed()
}

// changed wakes Run. Call with mu held.
func (o *Overlay) changed() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
