package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// farFuture keeps an upstream from reading resolv.conf again.
var farFuture = time.Now().Add(1000 * time.Hour)

// cluster is a fixed set of services.
type cluster struct {
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName][]*discoveryv1.EndpointSlice
	synced   chan struct{}
}

func (c *cluster) Get(name types.NamespacedName) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	return c.services[name], c.slices[name]
}

func (c *cluster) ByAddress(addr netip.Addr) []types.NamespacedName {
	var names []types.NamespacedName
	for name, service := range c.services {
		if service.Spec.ClusterIP == addr.String() {
			names = append(names, name)
		}
		for _, slice := range c.slices[name] {
			for _, e := range slice.Endpoints {
				if slices.Contains(e.Addresses, addr.String()) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

func (c *cluster) HasNamespace(namespace string) bool {
	for name := range c.services {
		if name.Namespace == namespace {
			return true
		}
	}
	return false
}

func (c *cluster) Synced() <-chan struct{} { return c.synced }

func (c *cluster) add(name string, spec corev1.ServiceSpec, endpoints ...discoveryv1.Endpoint) {
	key := types.NamespacedName{Namespace: "default", Name: name}
	c.services[key] = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec}
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}
	for _, port := range spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: new(port.Port + 8000)})
	}
	c.slices[key] = []*discoveryv1.EndpointSlice{slice}
}

func newCluster() *cluster {
	c := &cluster{services: make(map[types.NamespacedName]*corev1.Service), slices: make(map[types.NamespacedName][]*discoveryv1.EndpointSlice), synced: make(chan struct{})}
	close(c.synced)
	web := []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}
	ready := func(ip, hostname string, is bool) discoveryv1.Endpoint {
		e := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &is}}
		if hostname != "" {
			e.Hostname = &hostname
		}
		return e
	}
	c.add("kubernetes", corev1.ServiceSpec{ClusterIP: "10.43.0.1", Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443}}}, ready("192.168.77.1", "", true))
	c.add("web", corev1.ServiceSpec{ClusterIP: "10.43.0.80", Ports: web}, ready("10.42.0.5", "", true))
	c.add("headless", corev1.ServiceSpec{ClusterIP: "None", Ports: web}, ready("10.42.0.5", "web-0", true), ready("10.42.0.6", "", true), ready("10.42.0.7", "web-2", false))
	c.add("empty", corev1.ServiceSpec{ClusterIP: "None"})
	c.add("outside", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "foo.example.com"})
	c.add("alias", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.default.svc.cluster.local"})
	c.add("circle", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "circle.default.svc.cluster.local"})
	for name, target := range map[string]string{
		"far": "alias.default.svc.cluster.local", "round": "about.default.svc.cluster.local", "about": "round.default.svc.cluster.local",
		"back": "back.example.com", "nowhere": "missing.default.svc.cluster.local",
	} {
		c.add(name, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target})
	}
	return c
}

// askOnly has a server ask these name servers alone.
func askOnly(s *Server, addresses ...string) {
	s.upstream.from = source{path: "none", checked: farFuture}
	s.upstream.from.servers = s.upstream.from.take(addresses)
}

// newServer returns a server that answers from newCluster, with upstream
// resolvers as resolvConf has it.
func newServer(t testing.TB, resolvConf string) *Server {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(resolvConf), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(Config{
		Addr: netip.MustParseAddrPort("10.43.0.10:53"), Domain: "cluster.local", ResolvConf: path, Services: newCluster(),
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
	})
}

// example serves foo.example.com and a long TXT record on a port of its own.
func example(t *testing.T) (resolvConf string, asked func() int64) {
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		count.Add(1)
		response := new(dns.Msg).SetReply(request)
		switch dns.CanonicalName(request.Question[0].Name) {
		case "foo.example.com.":
			record, _ := dns.NewRR("foo.example.com. 60 IN A 203.0.113.9")
			response.Answer = []dns.RR{record}
		case "back.example.com.":
			record, _ := dns.NewRR("back.example.com. 60 IN CNAME web.default.svc.cluster.local.")
			response.Answer = []dns.RR{record}
		default:
			response.Rcode = dns.RcodeNameError
			record, _ := dns.NewRR("example.com. 60 IN SOA ns.example.com. a.example.com. 1 2 3 4 60")
			response.Ns = []dns.RR{record}
		}
		_ = w.WriteMsg(response)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	t.Cleanup(func() { packets.Close(); <-done })
	return packets.LocalAddr().String(), count.Load
}

// TestAnswers holds the names of the DNS specification and those that the
// upstream conformance suite asks for.
func TestAnswers(t *testing.T) {
	address, _ := example(t)
	server := newServer(t, "")
	askOnly(server, address)
	for _, test := range []struct{ name, qtype, want string }{
		{"kubernetes.default.svc.cluster.local", "A", "A 10.43.0.1"},
		{"KUBERNETES.default.SVC.cluster.local", "A", "A 10.43.0.1"},
		{"kubernetes.default.svc.cluster.local", "AAAA", "NOERROR"},
		{"_https._tcp.kubernetes.default.svc.cluster.local", "SRV", "SRV 0 100 443 kubernetes.default.svc.cluster.local. + A 10.43.0.1"},
		{"web.default.svc.cluster.local", "A", "A 10.43.0.80"},
		{"web.default.svc.cluster.local", "SRV", "SRV 0 100 53 web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local. + A 10.43.0.80"},
		{"web.default.svc.cluster.local", "TXT", "NOERROR"},
		{"_http._tcp.web.default.svc.cluster.local", "SRV", "SRV 0 100 80 web.default.svc.cluster.local. + A 10.43.0.80"},
		{"_http._udp.web.default.svc.cluster.local", "SRV", "NXDOMAIN"},
		{"_http._tcp.web.default.svc.cluster.local", "A", "NOERROR"},
		{"_tcp.web.default.svc.cluster.local", "SRV", "NOERROR"},
		{"http._tcp.web.default.svc.cluster.local", "SRV", "NXDOMAIN"},
		{"10-42-0-5.web.default.svc.cluster.local", "A", "A 10.42.0.5"},
		{"headless.default.svc.cluster.local", "A", "A 10.42.0.5 A 10.42.0.6"},
		{"web-0.headless.default.svc.cluster.local", "A", "A 10.42.0.5"},
		{"10-42-0-6.headless.default.svc.cluster.local", "A", "A 10.42.0.6"},
		{"web-2.headless.default.svc.cluster.local", "A", "NXDOMAIN"}, // not ready
		{"_http._tcp.headless.default.svc.cluster.local", "SRV",
			"SRV 0 100 8080 10-42-0-6.headless.default.svc.cluster.local. SRV 0 100 8080 web-0.headless.default.svc.cluster.local. + A 10.42.0.5 A 10.42.0.6"},
		{"empty.default.svc.cluster.local", "A", "NOERROR"},
		{"outside.default.svc.cluster.local", "CNAME", "CNAME foo.example.com."},
		{"outside.default.svc.cluster.local", "A", "A 203.0.113.9 CNAME foo.example.com."},
		{"alias.default.svc.cluster.local", "A", "A 10.43.0.80 CNAME web.default.svc.cluster.local."},
		{"circle.default.svc.cluster.local", "A", "CNAME circle.default.svc.cluster.local."},
		{"missing.default.svc.cluster.local", "A", "NXDOMAIN"},
		{"a.b.c.d.default.svc.cluster.local", "A", "NXDOMAIN"},
		{"default.svc.cluster.local", "A", "NOERROR"},
		{"nowhere.svc.cluster.local", "A", "NXDOMAIN"},
		{"svc.cluster.local", "A", "NOERROR"},
		{"cluster.local", "A", "NOERROR"},
		{"cluster.local", "SOA", "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
		{"cluster.local", "NS", "NS ns.dns.cluster.local. + A 10.43.0.10"},
		{"ns.dns.cluster.local", "A", "A 10.43.0.10"},
		{"dns-version.cluster.local", "TXT", `TXT "1.1.0"`},
		{"other.cluster.local", "A", "NXDOMAIN"},
		{"foo.example.com.default.svc.cluster.local", "A", "NXDOMAIN"}, // a search path at work
		{"10-42-0-9.default.pod.cluster.local", "A", "A 10.42.0.9"},
		{"10-42-0-9.default.pod.cluster.local", "AAAA", "NOERROR"},
		{"2001-db8--1.default.pod.cluster.local", "AAAA", "AAAA 2001:db8::1"},
		{"not-an-address.default.pod.cluster.local", "A", "NXDOMAIN"},
		{"80.0.43.10.in-addr.arpa", "PTR", "PTR web.default.svc.cluster.local."},
		{"5.0.42.10.in-addr.arpa", "PTR", "PTR web-0.headless.default.svc.cluster.local."},
		{"6.0.42.10.in-addr.arpa", "PTR", "PTR 10-42-0-6.headless.default.svc.cluster.local."},
		{"7.0.42.10.in-addr.arpa", "PTR", "NXDOMAIN"}, // not ready
		{"far.default.svc.cluster.local", "A", "A 10.43.0.80 CNAME alias.default.svc.cluster.local. CNAME web.default.svc.cluster.local."},
		{"far.default.svc.cluster.local", "CNAME", "CNAME alias.default.svc.cluster.local."},
		{"round.default.svc.cluster.local", "A", "CNAME about.default.svc.cluster.local. CNAME round.default.svc.cluster.local."},
		{"back.default.svc.cluster.local", "A", "A 10.43.0.80 CNAME back.example.com. CNAME web.default.svc.cluster.local."},
		{"nowhere.default.svc.cluster.local", "A", "NXDOMAIN"},
		{"99.0.43.10.in-addr.arpa", "PTR", "NXDOMAIN"},
		{"foo.example.com", "A", "A 203.0.113.9"},
		{"bar.example.com", "A", "NXDOMAIN"},
	} {
		t.Run(test.qtype+" "+test.name, func(t *testing.T) {
			request := new(dns.Msg).SetQuestion(dns.Fqdn(test.name), dns.StringToType[test.qtype])
			response := server.Answer(context.Background(), request, false)
			if got := text(response); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if response.Id != request.Id || response.Question[0] != request.Question[0] {
				t.Errorf("answers another question: %v", response)
			}
			if len(response.Answer) == 0 && len(response.Ns) != 1 {
				t.Errorf("a denial without a start of authority: %v", response)
			}
		})
	}
}

// text writes a response as "records + additional records", or its code.
func text(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	section := func(records []dns.RR) string {
		var parts []string
		for _, record := range records {
			if record.Header().Rrtype != dns.TypeOPT {
				parts = append(parts, dns.TypeToString[record.Header().Rrtype]+" "+strings.TrimPrefix(record.String(), record.Header().String()))
			}
		}
		slices.Sort(parts)
		return strings.Join(parts, " ")
	}
	if extra := section(m.Extra); extra != "" {
		return section(m.Answer) + " + " + extra
	}
	return section(m.Answer)
}

func TestCaseIsKept(t *testing.T) {
	server := newServer(t, "")
	request := new(dns.Msg).SetQuestion("wEb.Default.svc.cluster.LOCAL.", dns.TypeA)
	response := server.Answer(context.Background(), request, false)
	if len(response.Answer) != 1 || response.Answer[0].Header().Name != request.Question[0].Name {
		t.Errorf("got %v", response)
	}
}

func TestProtocolErrors(t *testing.T) {
	server := newServer(t, "nameserver 10.43.0.10\n") // ourselves alone: nobody to ask
	question := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		change(m)
		return m
	}
	for name, test := range map[string]struct {
		request *dns.Msg
		rcode   int
	}{
		"no upstream":   {new(dns.Msg).SetQuestion("example.com.", dns.TypeA), dns.RcodeServerFailure},
		"update":        {question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"no question":   {question(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"two questions": {question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"class":         {question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"edns version": {question(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().SetVersion(1)
		}), dns.RcodeBadVers},
	} {
		if response := server.Answer(context.Background(), test.request, false); response.Rcode != test.rcode {
			t.Errorf("%s: %s", name, dns.RcodeToString[response.Rcode])
		}
	}
	if server.Answer(context.Background(), question(func(m *dns.Msg) { m.Response = true }), false) != nil {
		t.Error("a response was answered")
	}
	server.cfg.Services.(*cluster).synced = make(chan struct{})
	if response := server.Answer(context.Background(), question(func(*dns.Msg) {}), false); response.Rcode != dns.RcodeServerFailure {
		t.Errorf("before services are known: %v", response)
	}
}

func TestTruncation(t *testing.T) {
	server := newServer(t, "")
	c := server.cfg.Services.(*cluster)
	var endpoints []discoveryv1.Endpoint
	for i := range 200 {
		endpoints = append(endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.1.%d", i)}})
	}
	c.add("big", corev1.ServiceSpec{ClusterIP: "None"}, endpoints...)
	for _, test := range []struct {
		edns      uint16
		isTCP     bool
		size      int
		truncated bool
	}{
		{0, false, 512, true},
		{1232, false, 1232, true},
		{100, false, 512, true},
		{65535, false, 4096, false},
		{0, true, 65535, false},
	} {
		request := new(dns.Msg).SetQuestion("big.default.svc.cluster.local.", dns.TypeA)
		if test.edns > 0 {
			request.SetEdns0(test.edns, false)
		}
		response := server.Answer(context.Background(), request, test.isTCP)
		wire, err := response.Pack()
		if err != nil || len(wire) > test.size || response.Truncated != test.truncated || (response.IsEdns0() != nil) != (test.edns > 0) {
			t.Errorf("edns %d, tcp %v: %d bytes, truncated %v, edns %v, %v", test.edns, test.isTCP, len(wire), response.Truncated, response.IsEdns0(), err)
		}
	}
}

func TestUpstreamCache(t *testing.T) {
	address, asked := example(t)
	server := newServer(t, "")
	askOnly(server, address)
	for _, name := range []string{"foo.example.com.", "FOO.example.com.", "bar.example.com.", "bar.example.com."} {
		request := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if response := server.Answer(context.Background(), request, false); response.Question[0].Name != name || response.Id != request.Id {
			t.Errorf("%s: %v", name, response)
		}
	}
	if asked() != 2 {
		t.Errorf("the upstream was asked %d times, not 2", asked())
	}
}

func TestReadServers(t *testing.T) {
	server := newServer(t, "search x\nnameserver 10.43.0.10\nnameserver 127.0.0.53\nnameserver 2001:db8::1\n")
	var servers []string
	for _, s := range server.upstream.from.current(time.Now()) {
		servers = append(servers, s.address)
	}
	if want := []string{"127.0.0.53:53", "[2001:db8::1]:53"}; !slices.Equal(servers, want) {
		t.Errorf("got %v, want %v", servers, want)
	}
}

func FuzzAnswer(f *testing.F) {
	server := newServer(f, "")
	for _, name := range []string{"web.default.svc.cluster.local.", "5.0.42.10.in-addr.arpa.", "x.", "1.0.0.0.ip6.arpa.", "10-1-1-1.a.pod.cluster.local."} {
		packed, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, true).Pack()
		f.Add(packed, false)
	}
	f.Fuzz(func(t *testing.T, packed []byte, isTCP bool) {
		request := new(dns.Msg)
		if request.Unpack(packed) != nil {
			return
		}
		response := server.Answer(context.Background(), request, isTCP)
		if response == nil {
			return
		}
		if _, err := response.Pack(); err != nil && len(request.Question) == 1 {
			t.Errorf("cannot pack the answer to %v: %v", request, err)
		}
	})
}
