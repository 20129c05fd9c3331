package rules

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Sets and maps of nftables mode, which find a destination in one step.
const (
	serviceIPs   = "service-ips"   // address . protocol . port -> chain
	hostIPs      = "host-ips"      // address . protocol . port -> chain
	hostPorts    = "host-ports"    // protocol . port -> chain
	nodePorts    = "node-ports"    // protocol . port -> chain
	refusedIPs   = "refused-ips"   // address . protocol . port -> verdict
	refusedPorts = "refused-ports" // protocol . port -> verdict
)

// nftMaps gives the type of each map.
var nftMaps = map[string]string{
	serviceIPs:   "ipv4_addr . inet_proto . inet_service : verdict",
	hostIPs:      "ipv4_addr . inet_proto . inet_service : verdict",
	hostPorts:    "inet_proto . inet_service : verdict",
	nodePorts:    "inet_proto . inet_service : verdict",
	refusedIPs:   "ipv4_addr . inet_proto . inet_service : verdict",
	refusedPorts: "inet_proto . inet_service : verdict",
}

// The chains that the others lead to.
const (
	nftServices = "services"
	nftLocal    = "local-ports"
	nftMarkMasq = "mark-masq"
	nftReject   = "reject-new"
	nftRefuse   = "refuse"
	nftGuard    = "guard-loopback"
)

// element is a key of a map; the parts of the key are joined by " . ".
type element struct{ set, key string }

// nftFragment is all that one owner contributes in nftables mode.
type nftFragment struct {
	chains   map[string][]string
	sticky   map[string]time.Duration // sets of clients, by name, that are remembered for so long
	elements map[element]string
	udp      []udpFrontend
	health   *healthPort
}

func newNFTFragment() *nftFragment {
	return &nftFragment{chains: make(map[string][]string), sticky: make(map[string]time.Duration), elements: make(map[element]string)}
}

func (f *nftFragment) add(chain string, rules ...string) {
	f.chains[chain] = append(f.chains[chain], rules...)
}

func (f *nftFragment) lead(set, verdict string, key ...string) {
	f.elements[element{set, strings.Join(key, " . ")}] = verdict
}

// nftBase renders the chains whose rules depend on the node alone. Nothing is
// accepted here: a verdict of ours could not overrule another table's.
func nftBase(facts *Facts) map[string][]string {
	cluster, pods := facts.ClusterCIDR.String(), facts.PodCIDR.String()
	const unmarked = "meta mark & 0x4000 == 0 "
	return map[string][]string{
		"nat-prerouting": {"jump " + nftServices},
		"nat-output":     {"jump " + nftServices},
		nftServices: {
			"ip daddr . meta l4proto . th dport vmap @" + serviceIPs,
			"fib daddr type local jump " + nftLocal,
		},
		nftLocal: {
			"ip daddr . meta l4proto . th dport vmap @" + hostIPs,
			"meta l4proto . th dport vmap @" + hostPorts,
			"meta l4proto . th dport vmap @" + nodePorts,
		},
		nftMarkMasq: {"meta mark set meta mark | 0x4000"},
		"nat-postrouting": { // as in iptables mode, see base
			unmarked + "ip saddr " + cluster + " ip daddr " + cluster + " return",
			unmarked + "ip saddr " + pods + " ip daddr 224.0.0.0/4 return",
			unmarked + "ip saddr " + pods + " masquerade fully-random",
			unmarked + "return",
			"meta mark set meta mark & 0xffffbfff",
			"masquerade fully-random",
		},
		"filter-input": {
			"ip daddr 127.0.0.0/8 ip saddr != 127.0.0.0/8 jump " + nftGuard,
			"ct state new jump " + nftReject,
		},
		nftGuard: {"ct state established,related return", "ct status dnat return", "drop"},
		"filter-forward": {
			"ct state invalid drop",
			"ct state new jump " + nftReject,
		},
		"filter-output": {"ct state new jump " + nftReject},
		nftReject: {
			"ip daddr . meta l4proto . th dport vmap @" + refusedIPs,
			"fib daddr type local meta l4proto . th dport vmap @" + refusedPorts,
		},
		nftRefuse: {"reject"},
	}
}

// renderNFTService renders one service; nil if it has no rules.
func renderNFTService(service *corev1.Service, slices []*discoveryv1.EndpointSlice, facts *Facts) *nftFragment {
	ports := ServicePorts(service, slices, facts)
	if len(ports) == 0 {
		return nil
	}
	f := newNFTFragment()
	for i := range ports {
		renderNFTPort(f, &ports[i], facts)
	}
	f.health = healthOf(service, ports)
	return f
}

// renderNFTPort renders one service port in the shape of renderPort.
func renderNFTPort(f *nftFragment, p *ServicePort, facts *Facts) {
	cluster, local := p.nftChain("svc"), p.nftChain("svl")
	nftBalance(f, cluster, p, p.Cluster)
	nftBalance(f, local, p, p.Local)
	internal, endpoints := cluster, p.Cluster
	if p.InternalLocal {
		internal, endpoints = local, p.Local
	}
	key := []string{p.ClusterIP.String(), p.Protocol, fmt.Sprint(p.Port)}
	if len(endpoints) > 0 {
		f.lead(serviceIPs, "goto "+internal, key...)
		offCluster := fmt.Sprintf("ip saddr != %s ip daddr %s meta l4proto %s th dport %d jump %s", facts.ClusterCIDR, p.ClusterIP, p.Protocol, p.Port, nftMarkMasq)
		f.chains[internal] = append([]string{offCluster}, f.chains[internal]...)
	} else {
		f.lead(refusedIPs, p.nftRefusal(), key...)
	}
	if p.external() {
		renderNFTExternal(f, p, facts)
	}
	f.udp = append(f.udp, udpFrontends(p)...)
}

// renderNFTExternal renders the ways in from outside the cluster.
func renderNFTExternal(f *nftFragment, p *ServicePort, facts *Facts) {
	endpoints, target, ext := p.Cluster, p.nftChain("svc"), p.nftChain("ext")
	if p.ExternalLocal {
		endpoints, target = p.Local, p.nftChain("svl")
	}
	refused := len(endpoints) == 0
	if p.Anywhere {
		renderNFTExternalChain(f, p, facts, ext, target, !refused)
	}
	port := fmt.Sprint(p.Port)
	for _, addr := range p.ExternalIPs {
		f.way(p, ext, refused, addr.String(), p.Protocol, port)
	}
	for _, addr := range p.LoadBalancerIPs {
		into := ext
		if len(p.SourceRanges) > 0 {
			into = p.nftChain("src")
			f.chains[into] = []string{"ip saddr " + nftRanges(p.SourceRanges) + " goto " + ext}
			if !refused { // traffic from elsewhere keeps that address
				f.lead(refusedIPs, "drop", addr.String(), p.Protocol, port)
			}
		}
		f.way(p, into, refused, addr.String(), p.Protocol, port)
	}
	if p.NodePort != 0 {
		if p.Anywhere {
			f.lead(nodePorts, "goto "+ext, p.Protocol, fmt.Sprint(p.NodePort))
		}
		if refused {
			f.lead(refusedPorts, p.nftRefusal(), p.Protocol, fmt.Sprint(p.NodePort))
		}
	}
}

// way leads an address of the service to chain, or refuses it.
func (f *nftFragment) way(p *ServicePort, chain string, refused bool, key ...string) {
	if p.Anywhere {
		f.lead(serviceIPs, "goto "+chain, key...)
	}
	if refused {
		f.lead(refusedIPs, p.nftRefusal(), key...)
	}
}

func nftRanges(ranges []netip.Prefix) string {
	texts := make([]string, len(ranges))
	for i, r := range ranges {
		texts[i] = r.String()
	}
	return "{ " + strings.Join(texts, ", ") + " }"
}

func renderNFTExternalChain(f *nftFragment, p *ServicePort, facts *Facts, ext, target string, usable bool) {
	f.chains[ext] = []string{}
	if !p.ExternalLocal {
		f.add(ext, "jump "+nftMarkMasq)
	} else if len(p.Cluster) > 0 {
		any := p.nftChain("svc")
		f.add(ext, "ip saddr "+facts.ClusterCIDR.String()+" goto "+any,
			"fib saddr type local jump "+nftMarkMasq, "fib saddr type local goto "+any)
	}
	if usable {
		f.add(ext, "goto "+target)
	}
}

// nftBalance renders a chain that spreads over endpoints, and their chains.
func nftBalance(f *nftFragment, chain string, p *ServicePort, endpoints []Endpoint) {
	if len(endpoints) == 0 {
		return
	}
	var ways []string
	for i, endpoint := range endpoints {
		sep := "sep-" + hash(p.String(), p.Protocol, endpoint.Addr.String())
		if p.Affinity > 0 {
			f.sticky[nftSticky(sep)] = time.Duration(p.Affinity) * time.Second
			f.add(chain, "ip saddr @"+nftSticky(sep)+" goto "+sep)
		}
		ways = append(ways, fmt.Sprintf("%d : goto %s", i, sep))
		if f.chains[sep] == nil {
			f.chains[sep] = nftEndpoint(sep, p, endpoint)
		}
	}
	f.add(chain, fmt.Sprintf("numgen random mod %d vmap { %s }", len(ways), strings.Join(ways, " , ")))
}

func nftSticky(sep string) string { return "clients-" + strings.TrimPrefix(sep, "sep-") }

func nftEndpoint(sep string, p *ServicePort, endpoint Endpoint) []string {
	rules := []string{fmt.Sprintf("ip saddr %s jump %s", endpoint.Addr.Addr(), nftMarkMasq)}
	if p.Affinity > 0 {
		rules = append(rules, "update @"+nftSticky(sep)+" { ip saddr }")
	}
	return append(rules, fmt.Sprintf("meta l4proto %s dnat to %s", p.Protocol, endpoint.Addr))
}

func (p *ServicePort) nftChain(kind string) string { return kind + "-" + hash(p.String(), p.Protocol) }

// nftRefusal is refuse in nftables' words.
func (p *ServicePort) nftRefusal() string {
	if p.Anywhere {
		return "drop"
	}
	return "goto " + nftRefuse
}

// renderNFTHostPorts renders the host ports of one sandbox.
func renderNFTHostPorts(sandbox string, ports []HostPort) *nftFragment {
	f := newNFTFragment()
	for _, h := range ports {
		chain := "hp-" + hash(sandbox, h.String())
		f.chains[chain] = []string{
			fmt.Sprintf("ip saddr { %s, 127.0.0.0/8 } jump %s", h.Pod.Addr(), nftMarkMasq),
			fmt.Sprintf("meta l4proto %s dnat to %s", h.Protocol, h.Pod),
		}
		if h.HostIP.IsValid() {
			f.lead(hostIPs, "goto "+chain, h.HostIP.String(), h.Protocol, fmt.Sprint(h.Port))
		} else {
			f.lead(hostPorts, "goto "+chain, h.Protocol, fmt.Sprint(h.Port))
		}
		if h.Protocol == "udp" {
			f.udp = append(f.udp, udpFrontend{addr: netip.AddrPortFrom(h.HostIP, h.Port), endpoints: []netip.AddrPort{h.Pod}})
		}
	}
	return f
}
