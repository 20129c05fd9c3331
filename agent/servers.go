package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// servers is the node's balancer: it knows the addresses of all servers,
// connects to one that answers and stays with it. What it learned outlives the
// process, so that an agent comes up though the server that it was given is gone.
type servers struct {
	given string // host:port from the command line
	file  string

	mu      sync.Mutex // guards what follows
	learned []string   // host:port, sorted
	current string     // the last that answered as a server
	changed chan struct{}
	open    map[net.Conn]bool // connections of the API client
	health  health            // of the server that they lead to
}

// dialTime is how long one server may take to answer while there are others.
const dialTime = 3 * time.Second

// newServers reads what an earlier process learned.
func newServers(given, file string) *servers {
	s := &servers{given: given, file: file, current: given, changed: make(chan struct{}), open: make(map[net.Conn]bool)}
	if data, err := os.ReadFile(file); err == nil {
		_ = json.Unmarshal(data, &s.learned) // damaged: it is learned again
	}
	return s
}

// candidates gives all addresses in the order in which to try them.
func (s *servers) candidates() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.ring()
	// The ring is kept, so that a server that was left is the last to be tried.
	i := max(0, slices.Index(all, s.current))
	return slices.Concat(all[i:], all[:i])
}

// ring gives all addresses in an order that does not depend on which is in use.
// Call with mu held.
func (s *servers) ring() []string {
	all := []string{s.given}
	for _, address := range s.learned {
		if address != s.given {
			all = append(all, address)
		}
	}
	return all
}

// dial connects to a server, whatever address is asked for.
func (s *servers) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return s.try(ctx, func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	})
}

// dialTLS is dial with the handshake. Only that tells a server from whatever else
// answers: a learned address may be another machine's where the agent is, behind
// NAT. Who has shown to be a server is asked first the next time.
func (s *servers) dialTLS(config *tls.Config) func(ctx context.Context, network, _ string) (net.Conn, error) {
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.try(ctx, func(ctx context.Context, address string) (net.Conn, error) {
			plain, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, fmt.Errorf("server %s: %w", address, err)
			}
			plain = s.track(plain)
			conn := tls.Client(plain, config)
			if err := conn.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(fmt.Errorf("server %s: %w", address, err), plain.Close())
			}
			s.mu.Lock()
			s.current = address
			s.mu.Unlock()
			return conn, nil
		})
	}
}

// try gives the first connection that comes about.
func (s *servers) try(ctx context.Context, connect func(ctx context.Context, address string) (net.Conn, error)) (net.Conn, error) {
	all := s.candidates()
	patience := dialTime
	if len(all) == 1 {
		patience = 10 * time.Second
	}
	var errs []error
	for _, address := range all {
		attempt, cancel := context.WithTimeout(ctx, patience)
		conn, err := connect(attempt, address)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// links gives the servers that want a link to this node, and a channel that is
// closed when they change: each server has the streams that its own clients ask
// for. The given address may be another name of one of them, so it counts only
// as long as nothing was learned; later it is a way to those that their own
// addresses do not lead to.
func (s *servers) links() ([]string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.learned) == 0 {
		return []string{s.given}, s.changed
	}
	return s.learned, s.changed
}

// learn takes the cluster's word for which servers there are; an empty list
// would be a mistake of somebody's.
func (s *servers) learn(addresses []string) error {
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(addresses) == 0 || slices.Equal(addresses, s.learned) {
		return nil
	}
	s.learned = addresses
	close(s.changed)
	s.changed = make(chan struct{})
	data, err := json.Marshal(addresses)
	if err == nil {
		err = replaceFile(s.file, data)
	}
	if err != nil {
		return fmt.Errorf("remember the servers: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// follow learns the servers from the endpoints of the kubernetes service, where
// each of them is listed, until ctx ends.
func (s *servers) follow(ctx context.Context, client kubernetes.Interface, failed func(error)) error {
	slices := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	only := discoveryv1.LabelServiceName + "=kubernetes"
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (kruntime.Object, error) {
			o.LabelSelector = only
			return slices.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = only
			return slices.Watch(ctx, o)
		},
	}
	sink := &serverSink{found: cache.NewStore(cache.MetaNamespaceKeyFunc), learn: func(addresses []string) {
		if err := s.learn(addresses); err != nil {
			failed(err)
		}
	}}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(source, client), &discoveryv1.EndpointSlice{}, sink,
		cache.ReflectorOptions{}).RunWithContext(ctx)
	return nil
}

// serverSink keeps the slices of the kubernetes service.
type serverSink struct {
	found cache.Store
	learn func([]string)
}

func (k *serverSink) Add(obj any) error    { return k.then(k.found.Add(obj)) }
func (k *serverSink) Update(obj any) error { return k.then(k.found.Update(obj)) }
func (k *serverSink) Delete(obj any) error { return k.then(k.found.Delete(obj)) }
func (k *serverSink) Resync() error        { return nil }
func (k *serverSink) Replace(list []any, version string) error {
	return k.then(k.found.Replace(list, version))
}

func (k *serverSink) then(err error) error {
	if err == nil {
		k.learn(serverAddresses(k.found.List()))
	}
	return err
}

// serverAddresses gives host:port of all endpoints.
func serverAddresses(endpointSlices []any) []string {
	var found []string
	for _, obj := range endpointSlices {
		slice := obj.(*discoveryv1.EndpointSlice)
		for _, port := range slice.Ports {
			if port.Port == nil {
				continue
			}
			for i := range slice.Endpoints {
				for _, address := range slice.Endpoints[i].Addresses {
					found = append(found, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return found
}
