package services

import (
	"context"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	listedServices = 1 << iota
	listedSlices
	listedAll = listedServices | listedSlices
)

// Run keeps the store up to date until ctx ends.
func (s *Store) Run(ctx context.Context, client kubernetes.Interface, logger *slog.Logger) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(logger.Handler()))
	services, endpointSlices := client.CoreV1().Services(""), client.DiscoveryV1().EndpointSlices("")
	var watches sync.WaitGroup
	watches.Go(func() {
		reflect(ctx, client, "services", &corev1.Service{}, s.serviceFeed(), source[*corev1.ServiceList]{services.List, services.Watch})
	})
	watches.Go(func() {
		reflect(ctx, client, "endpointslices", &discoveryv1.EndpointSlice{}, s.sliceFeed(),
			source[*discoveryv1.EndpointSliceList]{endpointSlices.List, endpointSlices.Watch})
	})
	watches.Wait()
}

type source[L runtime.Object] struct {
	list  func(context.Context, metav1.ListOptions) (L, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func reflect[L runtime.Object](ctx context.Context, client kubernetes.Interface, name string, kind runtime.Object, into cache.ReflectorStore, from source[L]) {
	both := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return from.list(ctx, o)
		},
		WatchFuncWithContext: from.watch,
	}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(both, client), kind, into,
		cache.ReflectorOptions{Name: name}).RunWithContext(ctx)
}

// feed takes a reflector's deliveries to one resource of the store.
type feed struct {
	set   func(name types.NamespacedName, object any) // object is nil to forget
	known func() []types.NamespacedName
	done  func() // after a Replace
}

func nameOf(object any) types.NamespacedName {
	meta := object.(metav1.Object)
	return types.NamespacedName{Namespace: meta.GetNamespace(), Name: meta.GetName()}
}

func (f feed) Add(object any) error    { f.set(nameOf(object), object); return nil }
func (f feed) Update(object any) error { return f.Add(object) }
func (f feed) Resync() error           { return nil }

func (f feed) Delete(object any) error {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	f.set(nameOf(object), nil)
	return nil
}

// Replace takes a whole new list: what is not in it is forgotten.
func (f feed) Replace(objects []any, _ string) error {
	listed := make(map[types.NamespacedName]bool, len(objects))
	for _, object := range objects {
		listed[nameOf(object)] = true
		f.set(nameOf(object), object)
	}
	for _, name := range f.known() {
		if !listed[name] {
			f.set(name, nil)
		}
	}
	f.done()
	return nil
}

func (s *Store) serviceFeed() feed {
	return feed{
		set: func(name types.NamespacedName, object any) {
			service, _ := object.(*corev1.Service)
			if service != nil {
				service.ManagedFields = nil
			}
			s.setService(name, service)
		},
		known: s.Names,
		done:  func() { s.listed(listedServices) },
	}
}

func (s *Store) sliceFeed() feed {
	return feed{
		set: func(name types.NamespacedName, object any) {
			slice, _ := object.(*discoveryv1.EndpointSlice)
			if slice != nil {
				slice.ManagedFields = nil
			}
			s.setSlice(name, slice)
		},
		known: s.sliceNames,
		done:  func() { s.listed(listedSlices) },
	}
}

func (s *Store) sliceNames() []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]types.NamespacedName, 0, len(s.sliceOwner))
	for name := range s.sliceOwner {
		names = append(names, name)
	}
	return names
}

// listed notes that a resource has been listed once.
func (s *Store) listed(resource int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.replaced != listedAll {
		if s.replaced |= resource; s.replaced == listedAll {
			close(s.synced)
		}
	}
}
