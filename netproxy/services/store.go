// Package services is the node's one copy of the cluster's Services and EndpointSlices, shared by rules, DNS and pods' environments.
package services

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Store holds the objects by service. Objects out of it are shared and must
// not be changed.
type Store struct {
	mu         sync.RWMutex                 // guards what follows
	onChange   []func(types.NamespacedName) // called without mu
	services   map[types.NamespacedName]*corev1.Service
	slices     map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice // by service, then slice name
	sliceOwner map[types.NamespacedName]types.NamespacedName                  // slice to service
	byAddress  map[netip.Addr]map[types.NamespacedName]int                    // cluster IPs and endpoint addresses, counted
	namespaces map[string]int                                                 // services per namespace
	replaced   int                                                            // bit set of resources listed once
	synced     chan struct{}                                                  // closed once both are
}

// NewStore returns an empty Store.
func NewStore() *Store {
	return &Store{
		services:   make(map[types.NamespacedName]*corev1.Service),
		slices:     make(map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice),
		sliceOwner: make(map[types.NamespacedName]types.NamespacedName),
		byAddress:  make(map[netip.Addr]map[types.NamespacedName]int),
		namespaces: make(map[string]int),
		synced:     make(chan struct{}),
	}
}

// OnChange registers f to be called with the service whose object or slices
// changed. f must be quick. Changes before the registration are not told.
func (s *Store) OnChange(f func(types.NamespacedName)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = append(s.onChange, f)
}

// Synced is closed once both resources have been listed.
func (s *Store) Synced() <-chan struct{} { return s.synced }

// WaitSynced waits for Synced.
func (s *Store) WaitSynced(ctx context.Context) error {
	select {
	case <-s.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for services: %w", context.Cause(ctx))
	}
}

// Get returns a service and its slices; the service is nil if there is none.
func (s *Store) Get(name types.NamespacedName) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	service := s.services[name]
	byName := s.slices[name]
	if len(byName) == 0 {
		return service, nil
	}
	all := make([]*discoveryv1.EndpointSlice, 0, len(byName))
	for _, slice := range byName {
		all = append(all, slice)
	}
	slices.SortFunc(all, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return service, all
}

// Names lists every service by name, in no order.
func (s *Store) Names() []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]types.NamespacedName, 0, len(s.services))
	for name := range s.services {
		names = append(names, name)
	}
	return names
}

// InNamespace lists the services of one namespace, sorted by name.
func (s *Store) InNamespace(namespace string) []*corev1.Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []*corev1.Service
	for name, service := range s.services {
		if name.Namespace == namespace {
			found = append(found, service)
		}
	}
	slices.SortFunc(found, func(a, b *corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// ByAddress lists the services that have addr as a cluster IP or an endpoint,
// sorted by name.
func (s *Store) ByAddress(addr netip.Addr) []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []types.NamespacedName
	for name := range s.byAddress[addr] {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	return names
}

// HasNamespace tells whether any service lives in the namespace.
func (s *Store) HasNamespace(namespace string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.namespaces[namespace] > 0
}

func (s *Store) notify(names ...types.NamespacedName) {
	s.mu.RLock()
	listeners := s.onChange
	s.mu.RUnlock()
	for _, name := range names {
		if name.Name == "" {
			continue
		}
		for _, f := range listeners {
			f(name)
		}
	}
}

// setService stores a service, or forgets it if service is nil.
func (s *Store) setService(name types.NamespacedName, service *corev1.Service) {
	s.mu.Lock()
	if old := s.services[name]; old != nil {
		s.count(name, serviceAddresses(old), -1)
		s.countNamespace(name.Namespace, -1)
		delete(s.services, name)
	}
	if service != nil {
		s.services[name] = service
		s.count(name, serviceAddresses(service), +1)
		s.countNamespace(name.Namespace, +1)
	}
	s.mu.Unlock()
	s.notify(name)
}

// setSlice stores a slice, or forgets it if slice is nil.
func (s *Store) setSlice(name types.NamespacedName, slice *discoveryv1.EndpointSlice) {
	s.mu.Lock()
	owner := s.sliceOwner[name]
	if old := s.slices[owner][name.Name]; old != nil {
		s.count(owner, sliceAddresses(old), -1)
		delete(s.slices[owner], name.Name)
		if len(s.slices[owner]) == 0 {
			delete(s.slices, owner)
		}
		delete(s.sliceOwner, name)
	}
	var next types.NamespacedName
	if slice != nil && slice.Labels[discoveryv1.LabelServiceName] != "" {
		next = types.NamespacedName{Namespace: name.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		if s.slices[next] == nil {
			s.slices[next] = make(map[string]*discoveryv1.EndpointSlice)
		}
		s.slices[next][name.Name] = slice
		s.sliceOwner[name] = next
		s.count(next, sliceAddresses(slice), +1)
	}
	s.mu.Unlock()
	if owner != next {
		s.notify(owner)
	}
	s.notify(next)
}

// count adds delta to each address's mention of name. Call with mu held.
func (s *Store) count(name types.NamespacedName, addrs []netip.Addr, delta int) {
	for _, addr := range addrs {
		of := s.byAddress[addr]
		if of == nil {
			of = make(map[types.NamespacedName]int)
			s.byAddress[addr] = of
		}
		if of[name] += delta; of[name] == 0 {
			delete(of, name)
		}
		if len(of) == 0 {
			delete(s.byAddress, addr)
		}
	}
}

// countNamespace adds delta to the namespace's services. Call with mu held.
func (s *Store) countNamespace(namespace string, delta int) {
	if s.namespaces[namespace] += delta; s.namespaces[namespace] == 0 {
		delete(s.namespaces, namespace)
	}
}

func serviceAddresses(service *corev1.Service) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range service.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr)
		}
	}
	if len(service.Spec.ClusterIPs) == 0 {
		if addr, err := netip.ParseAddr(service.Spec.ClusterIP); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func sliceAddresses(slice *discoveryv1.EndpointSlice) []netip.Addr {
	var addrs []netip.Addr
	for i := range slice.Endpoints {
		for _, text := range slice.Endpoints[i].Addresses {
			if addr, err := netip.ParseAddr(text); err == nil {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}
