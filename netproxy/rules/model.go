// Package rules turns services and host ports into packet rules: a pure function to the desired rules, and an engine that applies what changed.
package rules

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Facts are what rules depend on beside services.
type Facts struct {
	NodeName    string
	Zone        string // topology.kubernetes.io/zone of this node
	ClusterCIDR netip.Prefix
	PodCIDR     netip.Prefix
	// LocalDNS is the cluster DNS address where this process answers it itself;
	// a service with this cluster IP gets no rules, so that local delivery holds.
	LocalDNS netip.Addr
	// NoServices leaves services to another proxy: pods' masquerading and host
	// ports remain.
	NoServices bool
	// RandomFully tells that MASQUERADE knows --random-fully.
	RandomFully bool
}

// Endpoint is one address that a service port may be sent to.
type Endpoint struct {
	Addr netip.AddrPort
	// Local tells that the endpoint runs on this node.
	Local bool
}

// ServicePort is one port of a service with its endpoints resolved: all that a
// back end (iptables, nftables, userspace) needs to know of it.
type ServicePort struct {
	Service  types.NamespacedName
	Name     string // of the port; may be empty
	Protocol string // tcp, udp or sctp

	ClusterIP       netip.Addr
	Port            uint16
	NodePort        uint16       // 0 for none
	ExternalIPs     []netip.Addr // reached through this node, any source
	LoadBalancerIPs []netip.Addr // status ingress addresses in VIP mode
	SourceRanges    []netip.Prefix

	Affinity int // seconds a client sticks to its endpoint; 0 for none

	// InternalLocal and ExternalLocal tell which destinations use Local
	// endpoints only: the cluster IP, and everything else.
	InternalLocal, ExternalLocal bool

	Cluster []Endpoint // endpoints under policy Cluster
	Local   []Endpoint // endpoints under policy Local
	// Anywhere tells that usable endpoints exist, be it on other nodes only.
	Anywhere bool
}

// String is namespace/name:port, as rules' comments show it.
func (p *ServicePort) String() string {
	if p.Name == "" {
		return p.Service.String()
	}
	return p.Service.String() + ":" + p.Name
}

// external tells whether the port is reached by other addresses than its
// cluster IP.
func (p *ServicePort) external() bool {
	return p.NodePort != 0 || len(p.ExternalIPs) > 0 || len(p.LoadBalancerIPs) > 0
}

func (p *ServicePort) usesCluster() bool {
	return !p.InternalLocal || (p.external() && !p.ExternalLocal)
}
func (p *ServicePort) usesLocal() bool { return p.InternalLocal || (p.external() && p.ExternalLocal) }

// ServicePorts resolves one service. It returns nothing for services that are
// not proxied: headless, ExternalName, claimed by another proxy; nor for any
// where another proxy has them all.
func ServicePorts(service *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, facts *Facts) []ServicePort {
	if facts.NoServices || service == nil || service.Spec.Type == corev1.ServiceTypeExternalName || service.Labels["service.kubernetes.io/service-proxy-name"] != "" {
		return nil
	}
	clusterIP := clusterIPv4(service)
	if !clusterIP.IsValid() || clusterIP == facts.LocalDNS {
		return nil
	}
	ports := make([]ServicePort, 0, len(service.Spec.Ports))
	for i := range service.Spec.Ports {
		spec := &service.Spec.Ports[i]
		port := ServicePort{
			Service:   types.NamespacedName{Namespace: service.Namespace, Name: service.Name},
			Name:      spec.Name,
			Protocol:  protocol(spec.Protocol),
			ClusterIP: clusterIP,
			Port:      uint16(spec.Port),
			NodePort:  uint16(spec.NodePort),

			ExternalIPs:     addresses(service.Spec.ExternalIPs),
			LoadBalancerIPs: loadBalancerIPs(service),
			SourceRanges:    sourceRanges(service.Spec.LoadBalancerSourceRanges),
			Affinity:        affinity(service),
			InternalLocal:   service.Spec.InternalTrafficPolicy != nil && *service.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
			ExternalLocal:   service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		}
		port.resolve(candidates(endpointSlices, spec.Name, spec.Protocol, facts), facts)
		ports = append(ports, port)
	}
	return ports
}

func protocol(p corev1.Protocol) string {
	if p == "" {
		return "tcp"
	}
	return strings.ToLower(string(p))
}

func clusterIPv4(service *corev1.Service) netip.Addr {
	for _, text := range append([]string{service.Spec.ClusterIP}, service.Spec.ClusterIPs...) {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is4() {
			return addr
		}
	}
	return netip.Addr{}
}

// addresses parses the IPv4 addresses among texts, sorted.
func addresses(texts []string) []netip.Addr {
	var found []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is4() {
			found = append(found, addr)
		}
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found)
}

func loadBalancerIPs(service *corev1.Service) []netip.Addr {
	var texts []string
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, ingress.IP)
		}
	}
	return addresses(texts)
}

func sourceRanges(texts []string) []netip.Prefix {
	var found []netip.Prefix
	for _, text := range texts {
		if prefix, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && prefix.Addr().Is4() {
			found = append(found, prefix.Masked())
		}
	}
	return found
}

// affinityDefault is the API's default of sessionAffinityConfig.clientIP.timeoutSeconds.
const affinityDefault = 10800

func affinity(service *corev1.Service) int {
	if service.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := service.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return int(*c.ClientIP.TimeoutSeconds)
	}
	return affinityDefault
}

// candidate is an endpoint before the choice which ones are used.
type candidate struct {
	Endpoint
	ready, serving, terminating bool
	zones, nodes                []string // topology hints
}

// candidates collects the endpoints of one port from all slices, sorted by
// address, each address once.
func candidates(all []*discoveryv1.EndpointSlice, portName string, proto corev1.Protocol, facts *Facts) []candidate {
	var found []candidate
	for _, slice := range all {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		number := slicePort(slice, portName, proto)
		if number == 0 {
			continue
		}
		for i := range slice.Endpoints {
			if c, ok := newCandidate(&slice.Endpoints[i], number, facts); ok {
				found = append(found, c)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(a.Addr.Compare(b.Addr), a.rank()-b.rank())
	})
	return slices.CompactFunc(found, func(a, b candidate) bool { return a.Addr == b.Addr })
}

// rank orders duplicates of one address, the most usable first: a slice being
// replaced by another may show an endpoint twice for a moment.
func (c candidate) rank() int {
	switch {
	case c.ready:
		return 0
	case c.serving:
		return 1
	}
	return 2
}

// slicePort is the number of the named port in a slice, 0 if it has none.
func slicePort(slice *discoveryv1.EndpointSlice, name string, proto corev1.Protocol) uint16 {
	for _, port := range slice.Ports {
		if port.Port == nil || (port.Name == nil && name != "") || (port.Name != nil && *port.Name != name) {
			continue
		}
		if port.Protocol == nil && proto != corev1.ProtocolTCP && proto != "" {
			continue
		}
		if port.Protocol != nil && protocol(*port.Protocol) != protocol(proto) {
			continue
		}
		return uint16(*port.Port)
	}
	return 0
}

// newCandidate reads one endpoint. Unset conditions mean what the API says:
// ready unknown is ready, serving unknown follows ready.
func newCandidate(endpoint *discoveryv1.Endpoint, port uint16, facts *Facts) (candidate, bool) {
	if len(endpoint.Addresses) == 0 {
		return candidate{}, false
	}
	addr, err := netip.ParseAddr(endpoint.Addresses[0])
	if err != nil || !addr.Is4() {
		return candidate{}, false
	}
	c := candidate{Endpoint: Endpoint{Addr: netip.AddrPortFrom(addr, port)}}
	c.Local = endpoint.NodeName != nil && *endpoint.NodeName == facts.NodeName
	c.ready = endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
	c.serving = c.ready
	if endpoint.Conditions.Serving != nil {
		c.serving = *endpoint.Conditions.Serving
	}
	c.terminating = endpoint.Conditions.Terminating != nil && *endpoint.Conditions.Terminating
	if endpoint.Hints != nil {
		for _, zone := range endpoint.Hints.ForZones {
			c.zones = append(c.zones, zone.Name)
		}
		for _, node := range endpoint.Hints.ForNodes {
			c.nodes = append(c.nodes, node.Name)
		}
	}
	return c, true
}

// resolve chooses the endpoints in use: ready ones that the topology hints
// allow, or where none is ready anywhere, terminating ones that still serve
// (KEP-1669, KEP-2433, KEP-3015); for policy Local the same among the node's own.
func (p *ServicePort) resolve(all []candidate, facts *Facts) {
	ready := func(c candidate) bool { return c.ready }
	fading := func(c candidate) bool { return !c.ready && c.serving && c.terminating }
	local := func(c candidate) bool { return c.Local }
	if p.usesCluster() {
		if p.Cluster = pick(all, ready, topology(all, facts)); len(p.Cluster) == 0 {
			p.Cluster = pick(all, fading)
		}
	}
	if p.usesLocal() {
		if p.Local = pick(all, ready, local); len(p.Local) == 0 {
			p.Local = pick(all, fading, local)
		}
	}
	p.Anywhere = slices.ContainsFunc(all, ready) || slices.ContainsFunc(all, fading)
}

// pick returns the endpoints that pass every test.
func pick(all []candidate, tests ...func(candidate) bool) []Endpoint {
	var chosen []Endpoint
	for _, c := range all {
		if !slices.ContainsFunc(tests, func(test func(candidate) bool) bool { return !test(c) }) {
			chosen = append(chosen, c.Endpoint)
		}
	}
	return chosen
}

// topology returns the test that hints impose: hints count only if every ready
// endpoint has one and at least one names this node (or else this zone).
func topology(all []candidate, facts *Facts) func(candidate) bool {
	usable := func(hints func(candidate) []string, here string) bool {
		found := false
		for _, c := range all {
			if !c.ready {
				continue
			}
			if len(hints(c)) == 0 {
				return false
			}
			found = found || slices.Contains(hints(c), here)
		}
		return found && here != ""
	}
	nodes := func(c candidate) []string { return c.nodes }
	zones := func(c candidate) []string { return c.zones }
	if usable(nodes, facts.NodeName) {
		return func(c candidate) bool { return slices.Contains(c.nodes, facts.NodeName) }
	}
	if usable(zones, facts.Zone) {
		return func(c candidate) bool { return slices.Contains(c.zones, facts.Zone) }
	}
	return func(candidate) bool { return true }
}
