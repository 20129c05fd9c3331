package rules

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Chain names a chain of a table.
type Chain struct{ Table, Name string }

const (
	natTable    = "nat"
	filterTable = "filter"
	chainPrefix = "ORCH-" // every chain of ours, and nobody else's
)

// The fixed chains. The dispatch chains (services, node ports, rejects) only
// choose a bucket; buckets hold a rule per address and port.
var (
	chainServices    = Chain{natTable, "ORCH-SERVICES"}
	chainNodePorts   = Chain{natTable, "ORCH-NODEPORTS"}
	chainHostPorts   = Chain{natTable, "ORCH-HOSTPORTS"}
	chainMarkMasq    = Chain{natTable, "ORCH-MARK-MASQ"}
	chainPostrouting = Chain{natTable, "ORCH-POSTROUTING"}

	chainInput       = Chain{filterTable, "ORCH-INPUT"}
	chainForward     = Chain{filterTable, "ORCH-FORWARD"}
	chainOutput      = Chain{filterTable, "ORCH-OUTPUT"}
	chainReject      = Chain{filterTable, "ORCH-REJECT"}
	chainRejectPorts = Chain{filterTable, "ORCH-REJECT-PORTS"}
	chainHealth      = Chain{filterTable, "ORCH-HEALTH"}
)

// masqMark is the packet mark that asks for masquerading; the bit is
// kube-proxy's, so that one may run in the other's place.
const masqMark = "0x4000/0x4000"

// bucketCount splits dispatch by the low bits of the address: a change
// rewrites one small bucket instead of a chain with every service, and a packet
// passes tens of rules instead of thousands. A power of two.
const bucketCount = 64

// bucket is a chain that several owners contribute rules to.
type bucket struct {
	Chain
	parent   Chain
	selector string // match under which the parent jumps here; "" if the parent is written by hand
}

// entry is one owner's rule in a bucket.
type entry struct {
	bucket
	rule string
}

// fragment is all that one owner (a service, a sandbox with host ports)
// contributes.
type fragment struct {
	chains  map[Chain][]string
	entries []entry
	udp     []udpFrontend
	health  *healthPort
}

func newFragment() *fragment { return &fragment{chains: make(map[Chain][]string)} }

func (f *fragment) add(c Chain, rule string) { f.chains[c] = append(f.chains[c], rule) }

func (f *fragment) dispatch(b bucket, rule string) { f.entries = append(f.entries, entry{b, rule}) }

// addressBucket is where rules for an address stand.
func addressBucket(parent Chain, addr netip.Addr) bucket {
	four := addr.As4()
	low := int(four[3]) % bucketCount
	return bucket{
		Chain:    Chain{parent.Table, fmt.Sprintf("%s-%02d", parent.Name, low)},
		parent:   parent,
		selector: fmt.Sprintf("-d 0.0.0.%d/0.0.0.%d", low, bucketCount-1),
	}
}

// portBucket is where rules for a node port stand.
func portBucket(parent Chain, proto string, port uint16) bucket {
	first := int(port) / bucketCount * bucketCount
	return bucket{
		Chain:    Chain{parent.Table, fmt.Sprintf("%s-%s-%d", parent.Name, proto, first)},
		parent:   parent,
		selector: fmt.Sprintf("-p %s -m %s --dport %d:%d", proto, proto, first, first+bucketCount-1),
	}
}

// fixedBucket is a chain of ours that takes entries without being split.
func fixedBucket(c Chain) bucket { return bucket{Chain: c} }

// base renders the fixed chains whose rules depend on the node alone.
func base(facts *Facts) map[Chain][]string {
	masquerade := "-j MASQUERADE"
	if facts.RandomFully {
		masquerade += " --random-fully"
	}
	pods := facts.PodCIDR.String()
	chains := map[Chain][]string{
		chainMarkMasq: {"-j MARK --set-xmark " + masqMark},
		chainPostrouting: {
			// The mark is cleared so that a packet that meets these rules again
			// (a tunnel's inner and outer packet share it) is not treated twice.
			"-m mark ! --mark " + masqMark + " -s " + facts.ClusterCIDR.String() + " -d " + facts.ClusterCIDR.String() + " -j RETURN",
			"-m mark ! --mark " + masqMark + " -s " + pods + " -d 224.0.0.0/4 -j RETURN",
			"-m mark ! --mark " + masqMark + " -s " + pods + " " + masquerade,
			"-m mark ! --mark " + masqMark + " -j RETURN",
			"-j MARK --set-xmark 0x0/0x4000",
			masquerade,
		},
		chainInput: {
			// Pods' links accept 127.0.0.0/8 for the sake of host ports there;
			// only answers may use that (CVE-2020-8558).
			"-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
			"-m conntrack --ctstate NEW -j " + chainReject.Name,
			"-j " + chainHealth.Name,
		},
		chainForward: {
			"-m conntrack --ctstate INVALID -j DROP",
			"-m conntrack --ctstate NEW -j " + chainReject.Name,
			"-m mark --mark " + masqMark + " -j ACCEPT",
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-s " + pods + " -j ACCEPT",
			"-d " + pods + " -j ACCEPT",
		},
		chainOutput: {"-m conntrack --ctstate NEW -j " + chainReject.Name},
	}
	if facts.LocalDNS.IsValid() {
		for _, proto := range []string{"udp", "tcp"} {
			chains[chainInput] = append(chains[chainInput],
				fmt.Sprintf("-s %s -d %s/32 -p %s -m %s --dport 53 -j ACCEPT", pods, facts.LocalDNS, proto, proto))
		}
	}
	// What pods reach by a service address is theirs to reach, the API server
	// first of all, whatever a host firewall says of the port behind it.
	chains[chainInput] = append(chains[chainInput], "-s "+pods+" -m conntrack --ctstate DNAT -j ACCEPT")
	return chains
}

// jumps are the rules in the kernel's own chains that lead to ours.
func jumps() map[Chain]Chain {
	return map[Chain]Chain{
		{natTable, "PREROUTING"}:  chainServices,
		{natTable, "OUTPUT"}:      chainServices,
		{natTable, "POSTROUTING"}: chainPostrouting,
		{filterTable, "INPUT"}:    chainInput,
		{filterTable, "FORWARD"}:  chainForward,
		{filterTable, "OUTPUT"}:   chainOutput,
	}
}

// dispatchTail ends the dispatch chains, after the buckets.
func dispatchTail(parent Chain) []string {
	switch parent {
	case chainServices:
		return []string{
			"-m addrtype --dst-type LOCAL -j " + chainHostPorts.Name,
			"-m addrtype --dst-type LOCAL -j " + chainNodePorts.Name,
		}
	case chainReject:
		return []string{"-m addrtype --dst-type LOCAL -j " + chainRejectPorts.Name}
	}
	return nil
}

// dispatchChains always exist, if only with their tail.
func dispatchChains() []Chain {
	return []Chain{chainServices, chainNodePorts, chainHostPorts, chainReject, chainRejectPorts, chainHealth}
}

// renderService renders one service.
func renderService(service *corev1.Service, slices []*discoveryv1.EndpointSlice, facts *Facts) *fragment {
	ports := ServicePorts(service, slices, facts)
	if len(ports) == 0 {
		return nil
	}
	f := newFragment()
	for i := range ports {
		renderPort(f, &ports[i], facts)
	}
	renderHealth(f, service, ports)
	return f
}

// renderPort renders one service port. The shape is kube-proxy's:
//
//	SVC  balances over the endpoints of policy Cluster
//	SVL  balances over the endpoints of policy Local
//	EXT  decides which of both for traffic to node ports and external addresses
//	SEP  sends to one endpoint
func renderPort(f *fragment, p *ServicePort, facts *Facts) {
	cluster, local, ext := p.chain("SVC"), p.chain("SVL"), p.chain("EXT")
	balance(f, cluster, p, p.Cluster)
	balance(f, local, p, p.Local)

	internal, endpoints := cluster, p.Cluster
	if p.InternalLocal {
		internal, endpoints = local, p.Local
	}
	destination := p.match(p.ClusterIP, p.Port)
	if len(endpoints) > 0 {
		f.dispatch(addressBucket(chainServices, p.ClusterIP), destination+p.comment("cluster IP")+" -j "+internal.Name)
		// Clients outside the cluster must be answered through this node.
		offCluster := fmt.Sprintf("! -s %s %s -j %s", facts.ClusterCIDR, destination, chainMarkMasq.Name)
		f.chains[internal] = append([]string{offCluster}, f.chains[internal]...)
	} else {
		f.dispatch(addressBucket(chainReject, p.ClusterIP), destination+p.refuse())
	}
	if p.external() {
		renderExternal(f, p, facts, ext)
	}
	f.udp = append(f.udp, udpFrontends(p)...)
}

// renderExternal renders the ways in from outside the cluster.
func renderExternal(f *fragment, p *ServicePort, facts *Facts, ext Chain) {
	endpoints, target := p.Cluster, p.chain("SVC")
	if p.ExternalLocal {
		endpoints, target = p.Local, p.chain("SVL")
	}
	if p.Anywhere {
		renderExternalChain(f, p, facts, ext, target, len(endpoints) > 0)
	}
	refused := len(endpoints) == 0
	for _, addr := range p.ExternalIPs {
		destination := p.match(addr, p.Port)
		if p.Anywhere {
			f.dispatch(addressBucket(chainServices, addr), destination+p.comment("external IP")+" -j "+ext.Name)
		}
		if refused {
			f.dispatch(addressBucket(chainReject, addr), destination+p.refuse())
		}
	}
	for _, addr := range p.LoadBalancerIPs {
		renderLoadBalancer(f, p, addr, ext, refused)
	}
	if p.NodePort != 0 {
		destination := fmt.Sprintf("-p %s -m %s --dport %d", p.Protocol, p.Protocol, p.NodePort)
		if p.Anywhere {
			f.dispatch(portBucket(chainNodePorts, p.Protocol, p.NodePort), destination+p.comment("node port")+" -j "+ext.Name)
		}
		if refused {
			f.dispatch(fixedBucket(chainRejectPorts), destination+p.refuse())
		}
	}
}

func renderExternalChain(f *fragment, p *ServicePort, facts *Facts, ext, target Chain, usable bool) {
	if !p.ExternalLocal {
		f.add(ext, "-j "+chainMarkMasq.Name)
	} else if len(p.Cluster) > 0 {
		// Inside the cluster the policy does not apply: pods and the node itself
		// may use any endpoint (KEP-1669).
		any := p.chain("SVC").Name
		f.add(ext, "-s "+facts.ClusterCIDR.String()+" -j "+any)
		f.add(ext, "-m addrtype --src-type LOCAL -j "+chainMarkMasq.Name)
		f.add(ext, "-m addrtype --src-type LOCAL -j "+any)
	}
	if usable {
		f.add(ext, "-j "+target.Name)
	}
	if len(f.chains[ext]) == 0 {
		f.chains[ext] = []string{}
	}
}

// renderLoadBalancer renders one load balancer address; with source ranges,
// traffic from elsewhere keeps that address and is dropped by it.
func renderLoadBalancer(f *fragment, p *ServicePort, addr netip.Addr, ext Chain, refused bool) {
	destination := p.match(addr, p.Port)
	if p.Anywhere {
		sources := []string{""}
		if len(p.SourceRanges) > 0 {
			sources = nil
			for _, from := range p.SourceRanges {
				sources = append(sources, "-s "+from.String()+" ")
			}
		}
		for _, source := range sources {
			f.dispatch(addressBucket(chainServices, addr), source+destination+p.comment("load balancer IP")+" -j "+ext.Name)
		}
	}
	if refused {
		f.dispatch(addressBucket(chainReject, addr), destination+p.refuse())
	} else if len(p.SourceRanges) > 0 {
		f.dispatch(addressBucket(chainReject, addr), destination+p.comment("source not in loadBalancerSourceRanges")+" -j DROP")
	}
}

// balance renders a chain that spreads over endpoints, and their chains.
func balance(f *fragment, c Chain, p *ServicePort, endpoints []Endpoint) {
	for _, endpoint := range endpoints {
		sep := p.endpointChain(endpoint)
		if p.Affinity > 0 {
			f.add(c, fmt.Sprintf("-m recent --name %s --rcheck --seconds %d --reap --rsource -j %s", sep.Name, p.Affinity, sep.Name))
		}
	}
	for i, endpoint := range endpoints {
		sep := p.endpointChain(endpoint)
		if rest := len(endpoints) - i; rest > 1 {
			f.add(c, fmt.Sprintf("-m statistic --mode random --probability %0.10f -j %s", 1/float64(rest), sep.Name))
		} else {
			f.add(c, "-j "+sep.Name)
		}
		if f.chains[sep] == nil {
			f.chains[sep] = endpointRules(sep, p, endpoint)
		}
	}
}

// endpointRules sends to one endpoint; a pod that reaches itself is
// masqueraded, or it would see its own address as the client's.
func endpointRules(sep Chain, p *ServicePort, endpoint Endpoint) []string {
	remember := ""
	if p.Affinity > 0 {
		remember = " -m recent --name " + sep.Name + " --set --rsource"
	}
	return []string{
		fmt.Sprintf("-s %s/32 -j %s", endpoint.Addr.Addr(), chainMarkMasq.Name),
		fmt.Sprintf("-p %s -m %s%s -j DNAT --to-destination %s", p.Protocol, p.Protocol, remember, endpoint.Addr),
	}
}

func (p *ServicePort) match(addr netip.Addr, port uint16) string {
	return fmt.Sprintf("-d %s/32 -p %s -m %s --dport %d", addr, p.Protocol, p.Protocol, port)
}

func (p *ServicePort) comment(what string) string {
	return fmt.Sprintf(" -m comment --comment %q", p.String()+" "+what)
}

// refuse is the verdict for a destination without endpoints: an error at once,
// or silence where only this node has none, so that a load balancer retries.
func (p *ServicePort) refuse() string {
	if p.Anywhere {
		return p.comment("has no local endpoints") + " -j DROP"
	}
	return p.comment("has no endpoints") + " -j REJECT"
}

func (p *ServicePort) chain(kind string) Chain {
	return Chain{natTable, chainPrefix + kind + "-" + hash(p.String(), p.Protocol)}
}

func (p *ServicePort) endpointChain(e Endpoint) Chain {
	return Chain{natTable, chainPrefix + "SEP-" + hash(p.String(), p.Protocol, e.Addr.String())}
}

// hash shortens names to what a chain name (28 characters) has room for.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// HostPort is one port of the node that leads to a sandbox.
type HostPort struct {
	Protocol string     // tcp, udp or sctp
	HostIP   netip.Addr // invalid means every address of the node
	Port     uint16
	Pod      netip.AddrPort
}

func (h HostPort) String() string {
	address := "*"
	if h.HostIP.IsValid() {
		address = h.HostIP.String()
	}
	return h.Protocol + "/" + address + ":" + strconv.Itoa(int(h.Port))
}

// overlaps tells whether two host ports claim the same traffic.
func (h HostPort) overlaps(o HostPort) bool {
	return h.Protocol == o.Protocol && h.Port == o.Port && (!h.HostIP.IsValid() || !o.HostIP.IsValid() || h.HostIP == o.HostIP)
}

// renderHostPorts renders the host ports of one sandbox.
func renderHostPorts(sandbox string, ports []HostPort) *fragment {
	f := newFragment()
	for _, h := range ports {
		c := Chain{natTable, chainPrefix + "HP-" + hash(sandbox, h.String())}
		destination := fmt.Sprintf("-p %s -m %s --dport %d", h.Protocol, h.Protocol, h.Port)
		if h.HostIP.IsValid() {
			destination = fmt.Sprintf("-d %s/32 %s", h.HostIP, destination)
		}
		f.dispatch(fixedBucket(chainHostPorts), fmt.Sprintf("%s -m comment --comment %q -j %s", destination, "host port to "+h.Pod.String(), c.Name))
		f.chains[c] = []string{
			fmt.Sprintf("-s %s/32 -j %s", h.Pod.Addr(), chainMarkMasq.Name),
			"-s 127.0.0.0/8 -j " + chainMarkMasq.Name,
			fmt.Sprintf("-p %s -m %s -j DNAT --to-destination %s", h.Protocol, h.Protocol, h.Pod),
		}
		if h.Protocol == "udp" {
			f.udp = append(f.udp, udpFrontend{addr: netip.AddrPortFrom(h.HostIP, h.Port), endpoints: []netip.AddrPort{h.Pod}})
		}
	}
	return f
}
