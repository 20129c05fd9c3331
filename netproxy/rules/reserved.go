package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/internal/podnet"
)

// Reserved is what no service and no pod may take away: the API at the servers'
// addresses, the tunnel at all nodes', the service range and what leads nowhere
// else. Whoever could have the API's address would see everybody's tokens.
type Reserved struct {
	self        string // this node's name
	serviceCIDR netip.Prefix
	// HostPortsOnly tells that services are another proxy's.
	HostPortsOnly bool
	// Anchor is the link whose addresses are not the machine's own.
	Anchor string

	mu    sync.Mutex // guards what follows
	api   map[netip.AddrPort]bool
	nodes map[string]netip.Addr
}

// NewReserved knows neither servers nor nodes yet.
func NewReserved(self string, serviceCIDR netip.Prefix) *Reserved {
	return &Reserved{self: self, serviceCIDR: serviceCIDR, api: make(map[netip.AddrPort]bool), nodes: make(map[string]netip.Addr)}
}

// apiService has the servers' own addresses as its endpoints.
var apiService = types.NamespacedName{Namespace: "default", Name: "kubernetes"}

// setServers tells whether the servers are others than before.
func (r *Reserved) setServers(slices []*discoveryv1.EndpointSlice) (changed bool) {
	api := make(map[netip.AddrPort]bool)
	for _, s := range slices {
		for _, port := range s.Ports {
			for i := range s.Endpoints {
				for _, text := range s.Endpoints[i].Addresses {
					if addr, err := netip.ParseAddr(text); err == nil && port.Port != nil {
						api[netip.AddrPortFrom(addr, uint16(*port.Port))] = true
					}
				}
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = !maps.Equal(api, r.api)
	r.api = api
	return changed
}

// take notes an update, and gives the nodes whose address is another now.
func (r *Reserved) take(u podnet.Update) map[string]netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := make(map[string]netip.Addr)
	for name, p := range u.Peers {
		if r.nodes[name] != p.Addr {
			r.nodes[name], changed[name] = p.Addr, p.Addr
		}
	}
	for name := range r.nodes {
		_, told := u.Peers[name]
		if (u.Whole && !told) || slices.Contains(u.Gone, name) {
			delete(r.nodes, name)
			changed[name] = netip.Addr{}
		}
	}
	return changed
}

// Address tells whether no service may be reached at a port of an address that
// is not its cluster IP. A nil Reserved has no objection.
func (r *Reserved) Address(protocol string, addr netip.Addr, port uint16) bool {
	if r == nil {
		return false
	}
	if addr.IsLoopback() || r.serviceCIDR.Contains(addr) {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch protocol {
	case "tcp":
		return r.api[netip.AddrPortFrom(addr, port)] || r.apiPort(port) && (r.isNode(addr) || r.server(port) && r.isLocal(addr))
	case "udp":
		return port == tunnelPort && r.isNode(addr)
	}
	return false
}

// Port tells whether this node's port is taken at every address of it.
func (r *Reserved) Port(protocol string, port uint16) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return protocol == "udp" && port == tunnelPort || protocol == "tcp" && r.server(port)
}

// Call these with mu held.

func (r *Reserved) apiPort(port uint16) bool {
	for at := range r.api {
		if at.Port() == port {
			return true
		}
	}
	return false
}

func (r *Reserved) isNode(addr netip.Addr) bool {
	for _, node := range r.nodes {
		if node == addr {
			return true
		}
	}
	return false
}

// server tells whether this node serves the API on port.
func (r *Reserved) server(port uint16) bool {
	return r.api[netip.AddrPortFrom(r.nodes[r.self], port)]
}

func (r *Reserved) isLocal(addr netip.Addr) bool {
	local, err := localAddresses(r.Anchor)
	return err != nil || local[addr]
}

// Elsewhere tells whether addr is that of another node or server.
func (r *Reserved) Elsewhere(addr netip.Addr) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.isNode(addr)
	for at := range r.api {
		known = known || at.Addr() == addr
	}
	return known && !r.isLocal(addr)
}

// speaks tells whether it is this node that reports on services, as one should.
func (r *Reserved) speaks() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.nodes) > 0 && slices.Min(slices.Collect(maps.Keys(r.nodes))) == r.self
}

// refused lists in words what a service asks for and does not get.
func (r *Reserved) refused(service *corev1.Service) []string {
	if r == nil || r.HostPortsOnly || service == nil {
		return nil
	}
	var all []string
	for i := range service.Spec.Ports {
		spec := &service.Spec.Ports[i]
		proto := protocol(spec.Protocol)
		for _, addr := range slices.Concat(addresses(service.Spec.ExternalIPs), loadBalancerIPs(service)) {
			if r.Address(proto, addr, uint16(spec.Port)) {
				all = append(all, fmt.Sprintf("%s/%s", netip.AddrPortFrom(addr, uint16(spec.Port)), proto))
			}
		}
		if spec.NodePort != 0 && r.Port(proto, uint16(spec.NodePort)) {
			all = append(all, fmt.Sprintf("node port %d/%s", spec.NodePort, proto))
		}
	}
	return all
}

// withhold takes away from a service port what it may not have.
func (r *Reserved) withhold(p *ServicePort) {
	taken := func(addr netip.Addr) bool { return r.Address(p.Protocol, addr, p.Port) }
	p.ExternalIPs = slices.DeleteFunc(p.ExternalIPs, taken)
	p.LoadBalancerIPs = slices.DeleteFunc(p.LoadBalancerIPs, taken)
	if p.NodePort != 0 && r.Port(p.Protocol, p.NodePort) {
		p.NodePort = 0
	}
}
