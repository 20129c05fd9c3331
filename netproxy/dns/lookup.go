package dns

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// specVersion is the version of the Kubernetes DNS specification
// (github.com/kubernetes/dns/blob/master/docs/specification.md) answered for.
const specVersion = "1.1.0"

// answers to one name and type. A name that exists without records of the
// type is NODATA, one that does not exist NXDOMAIN.
type answers struct {
	exists bool
	answer []dns.RR
	extra  []dns.RR
	alias  string // the name is an alias of this one
}

// lookup answers a name of the zone, given in lower case.
func (s *Server) lookup(name string, qtype uint16) answers {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, s.zone))
	if len(labels) == 0 {
		return s.apex(qtype)
	}
	last := len(labels) - 1
	switch kind, rest := labels[last], labels[:last]; kind {
	case "svc":
		return s.service(name, rest, qtype)
	case "pod":
		return s.pod(name, rest, qtype)
	case "dns-version":
		if len(rest) > 0 {
			break
		}
		found := answers{exists: true}
		if wants(qtype, dns.TypeTXT) {
			found.answer = []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{specVersion}}}
		}
		return found
	case "dns":
		if len(rest) == 0 {
			return answers{exists: true}
		}
		if len(rest) == 1 && rest[0] == "ns" {
			return answers{exists: true, answer: addressRecords(name, qtype, []netip.Addr{s.cfg.Addr.Addr()})}
		}
	}
	return answers{}
}

func (s *Server) apex(qtype uint16) answers {
	found := answers{exists: true}
	switch qtype {
	case dns.TypeSOA:
		found.answer = []dns.RR{s.soa()}
	case dns.TypeNS:
		ns := "ns.dns." + s.zone
		found.answer = []dns.RR{&dns.NS{Hdr: header(s.zone, dns.TypeNS), Ns: ns}}
		found.extra = addressRecords(ns, dns.TypeA, []netip.Addr{s.cfg.Addr.Addr()})
	}
	return found
}

// pod answers a-b-c-d.namespace.pod: the address is in the name itself.
func (s *Server) pod(name string, labels []string, qtype uint16) answers {
	switch len(labels) {
	case 0:
		return answers{exists: true}
	case 1:
		return answers{exists: s.cfg.Services.HasNamespace(labels[0])}
	case 2:
		if addr, ok := dashedAddr(labels[0]); ok {
			return answers{exists: true, answer: addressRecords(name, qtype, []netip.Addr{addr})}
		}
	}
	return answers{}
}

// dashedAddr reads an address written with dashes for dots or colons.
func dashedAddr(label string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return addr, true
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return addr, err == nil
}

// service answers below svc:
//
//	namespace · service.namespace · endpoint.service.namespace · _port._proto.service.namespace
func (s *Server) service(name string, labels []string, qtype uint16) answers {
	count := len(labels)
	switch {
	case count == 0:
		return answers{exists: true}
	case count == 1:
		return answers{exists: s.cfg.Services.HasNamespace(labels[0])}
	case count > 4:
		return answers{}
	}
	key := types.NamespacedName{Namespace: labels[count-1], Name: labels[count-2]}
	service, slices := s.cfg.Services.Get(key)
	if service == nil {
		return answers{}
	}
	v := view{service: service, slices: slices, name: key.Name + "." + key.Namespace + ".svc." + s.zone}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		if count > 2 || service.Spec.ExternalName == "" {
			return answers{}
		}
		if _, err := netip.ParseAddr(service.Spec.ExternalName); err == nil {
			return answers{exists: true} // an alias of an address cannot be written
		}
		return answers{exists: true, alias: dns.CanonicalName(service.Spec.ExternalName)}
	}
	switch count {
	case 2:
		return v.root(name, qtype)
	case 3:
		return v.child(name, labels[0], qtype)
	}
	return v.port(name, labels[0], labels[1], qtype)
}

// view is one service with its endpoints, as names see it.
type view struct {
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
	name    string // service.namespace.svc.zone.
}

func (v *view) headless() bool { return v.service.Spec.ClusterIP == corev1.ClusterIPNone }

// root answers the service's own name.
func (v *view) root(name string, qtype uint16) answers {
	if qtype == dns.TypeSRV {
		found := v.portRecords(name, func(string, corev1.Protocol) bool { return true })
		found.exists = true
		return found
	}
	if !v.headless() {
		return answers{exists: true, answer: addressRecords(name, qtype, clusterIPs(v.service))}
	}
	var addrs []netip.Addr
	for _, e := range v.endpoints() {
		addrs = append(addrs, e.addr)
	}
	// A headless service without ready endpoints exists, as CoreDNS has it.
	return answers{exists: true, answer: addressRecords(name, qtype, unique(addrs))}
}

// child answers endpoint.service, and _proto.service which only has children.
func (v *view) child(name, label string, qtype uint16) answers {
	if proto, found := strings.CutPrefix(label, "_"); found {
		return answers{exists: v.hasProtocol(proto)}
	}
	var addrs []netip.Addr
	for _, e := range v.endpoints() {
		if e.label == label {
			addrs = append(addrs, e.addr)
		}
	}
	if len(addrs) == 0 {
		return answers{}
	}
	return answers{exists: true, answer: addressRecords(name, qtype, unique(addrs))}
}

// port answers _port._proto.service.
func (v *view) port(name, port, proto string, qtype uint16) answers {
	port, named := strings.CutPrefix(port, "_")
	proto, typed := strings.CutPrefix(proto, "_")
	if !named || !typed {
		return answers{}
	}
	found := v.portRecords(name, func(n string, p corev1.Protocol) bool {
		return strings.EqualFold(n, port) && strings.EqualFold(string(p), proto)
	})
	if !wants(qtype, dns.TypeSRV) {
		found.answer, found.extra = nil, nil
	}
	return found
}

func (v *view) hasProtocol(proto string) bool {
	for _, port := range v.service.Spec.Ports {
		if port.Name != "" && strings.EqualFold(string(port.Protocol), proto) {
			return true
		}
	}
	return false
}

// portRecords makes SRV records for the named ports that match, with the
// targets' addresses beside them.
func (v *view) portRecords(name string, match func(string, corev1.Protocol) bool) answers {
	var found answers
	add := func(target string, port int32, addrs []netip.Addr) {
		found.exists = true
		found.answer = append(found.answer, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: uint16(port), Target: target})
		for _, addr := range addrs {
			found.extra = append(found.extra, addressRecord(target, addr))
		}
	}
	if !v.headless() {
		for _, port := range v.service.Spec.Ports {
			if port.Name != "" && match(port.Name, port.Protocol) {
				add(v.name, port.Port, clusterIPs(v.service))
			}
		}
		found.extra = dns.Dedup(found.extra, nil)
		return found
	}
	for _, slice := range v.slices {
		for _, port := range slice.Ports {
			if port.Port == nil || port.Name == nil || *port.Name == "" || port.Protocol == nil || !match(*port.Name, *port.Protocol) {
				continue
			}
			for _, e := range sliceEndpoints(slice) {
				add(e.label+"."+v.name, *port.Port, []netip.Addr{e.addr})
			}
		}
	}
	found.answer, found.extra = dns.Dedup(found.answer, nil), dns.Dedup(found.extra, nil)
	return found
}

// endpoint is an address with the label it is known by under its service.
type endpoint struct {
	label string
	addr  netip.Addr
	named bool // the label is the pod's hostname
}

func (v *view) endpoints() []endpoint {
	var all []endpoint
	for _, slice := range v.slices {
		all = append(all, sliceEndpoints(slice)...)
	}
	return all
}

// sliceEndpoints lists the ready endpoints of a slice. Services that publish
// addresses which are not ready have them marked ready by the controller.
func sliceEndpoints(slice *discoveryv1.EndpointSlice) []endpoint {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	var all []endpoint
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		for _, text := range e.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			if e.Hostname != nil && *e.Hostname != "" {
				all = append(all, endpoint{strings.ToLower(*e.Hostname), addr, true})
			} else {
				all = append(all, endpoint{label: strings.NewReplacer(".", "-", ":", "-").Replace(text), addr: addr})
			}
		}
	}
	return all
}

// reverse lists the names of an address: the service whose cluster IP it is, or
// the endpoints that have it, of headless services all and of others those with a
// hostname.
func (s *Server) reverse(addr netip.Addr) []string {
	var names []string
	for _, key := range s.cfg.Services.ByAddress(addr) {
		service, slices := s.cfg.Services.Get(key)
		if service == nil {
			continue
		}
		root := key.Name + "." + key.Namespace + ".svc." + s.zone
		for _, clusterIP := range clusterIPs(service) {
			if clusterIP == addr {
				return []string{root}
			}
		}
		v := view{service: service, slices: slices}
		for _, e := range v.endpoints() {
			if e.addr == addr && (e.named || v.headless()) {
				names = append(names, e.label+"."+root)
			}
		}
	}
	return names
}

// reverseAddr reads the address out of an in-addr.arpa or ip6.arpa name.
func reverseAddr(name string) (netip.Addr, bool) {
	if labels, found := strings.CutSuffix(name, ".in-addr.arpa."); found {
		parts := strings.Split(labels, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return addr, err == nil
	}
	labels, found := strings.CutSuffix(name, ".ip6.arpa.")
	if !found || len(labels) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		text.WriteByte(labels[i])
		if i%8 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}

func clusterIPs(service *corev1.Service) []netip.Addr {
	texts := service.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{service.Spec.ClusterIP}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func wants(qtype, rrtype uint16) bool { return qtype == rrtype || qtype == dns.TypeANY }

// addressRecords makes A and AAAA records of the asked type, in random order
// so that clients spread.
func addressRecords(name string, qtype uint16, addrs []netip.Addr) []dns.RR {
	var records []dns.RR
	for _, addr := range addrs {
		if record := addressRecord(name, addr); wants(qtype, record.Header().Rrtype) {
			records = append(records, record)
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records
}

func addressRecord(name string, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

func unique(addrs []netip.Addr) []netip.Addr {
	seen := make(map[netip.Addr]bool, len(addrs))
	kept := addrs[:0]
	for _, addr := range addrs {
		if !seen[addr] {
			seen[addr] = true
			kept = append(kept, addr)
		}
	}
	return kept
}
