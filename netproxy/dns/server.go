// Package dns answers cluster DNS on the node: names of services and pods from memory, everything else from the node's own name servers.
package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Services is where names come from.
type Services interface {
	Get(types.NamespacedName) (*corev1.Service, []*discoveryv1.EndpointSlice)
	ByAddress(netip.Addr) []types.NamespacedName
	HasNamespace(string) bool
	Synced() <-chan struct{}
}

// Config of a Server.
type Config struct {
	Addr        netip.AddrPort // where to answer; its address is the cluster's name server
	Domain      string         // of the cluster, without dots at the ends
	ClusterCIDR netip.Prefix   // reverse names in these two ranges are never
	ServiceCIDR netip.Prefix   // asked outside
	ResolvConf  string         // file with the name servers for all other names; "": there are none
	Services    Services
	Logger      *slog.Logger // nil: slog.Default
}

// Server is the cluster's name server on one node.
type Server struct {
	cfg      Config
	zone     string // lower case, with the final dot
	upstream *upstream
	queries  *admission
	udp      net.PacketConn
	tcp      net.Listener
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Server{
		cfg:      cfg,
		zone:     dns.CanonicalName(cfg.Domain),
		upstream: newUpstream(cfg.ResolvConf, cfg.Addr.Addr(), cfg.Logger),
		queries:  newAdmission(queriesMax, queriesOfOne),
	}
}

// Listen takes the address, UDP and TCP. Serve closes what it opened.
func (s *Server) Listen(ctx context.Context) error {
	var config net.ListenConfig
	var err error
	if s.udp, err = config.ListenPacket(ctx, "udp4", s.cfg.Addr.String()); err != nil {
		return fmt.Errorf("listen for DNS (another name server on this node? see --disable dns): %w", err)
	}
	if s.tcp, err = config.Listen(ctx, "tcp4", s.udp.LocalAddr().String()); err != nil {
		s.udp.Close()
		return fmt.Errorf("listen for DNS: %w", err)
	}
	return nil
}

// queryTimeout bounds one query, upstream's time included; resolvers give up
// after five seconds.
const queryTimeout = 5 * time.Second

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		client := clientOf(w.RemoteAddr())
		if !s.queries.enter(client) {
			_ = w.WriteMsg(failure(request, dns.RcodeServerFailure))
			return
		}
		defer s.queries.leave(client)
		ctx, cancel := context.WithTimeout(ctx, queryTimeout)
		defer cancel()
		_, isTCP := w.RemoteAddr().(*net.TCPAddr)
		if response := s.Answer(ctx, request, isTCP); response != nil {
			_ = w.WriteMsg(response) // the client went away
		}
	})
	servers := []*dns.Server{
		{PacketConn: s.udp, Handler: handler, UDPSize: dns.MaxMsgSize},
		{Listener: &boundedListener{s.tcp, newAdmission(connectionsMax, connectionsOfOne)}, Handler: handler},
	}
	group, running := errgroup.WithContext(ctx)
	for _, server := range servers {
		group.Go(func() error {
			if err := server.ActivateAndServe(); err != nil && running.Err() == nil {
				return fmt.Errorf("serve DNS: %w", err)
			}
			return nil
		})
	}
	// Closing the sockets, not Shutdown: that one fails on a server that has
	// not begun yet, and there is nothing to finish that a client would not ask again.
	stop := context.AfterFunc(running, func() { s.udp.Close(); s.tcp.Close() })
	defer stop()
	return group.Wait()
}

// udpSizeMax bounds what a client may ask for in one datagram.
const udpSizeMax = 4096

// Answer answers one query, nil if it deserves no answer.
func (s *Server) Answer(ctx context.Context, request *dns.Msg, isTCP bool) *dns.Msg {
	if request.Response {
		return nil
	}
	response := s.dispatch(ctx, request)
	size := dns.MaxMsgSize
	if !isTCP {
		size = dns.MinMsgSize
		if opt := request.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), udpSizeMax)
		}
	}
	if opt := request.IsEdns0(); opt != nil && response.IsEdns0() == nil {
		response.SetEdns0(udpSizeMax, opt.Do())
	}
	response.Compress = true
	response.Truncate(size)
	return response
}

func (s *Server) dispatch(ctx context.Context, request *dns.Msg) *dns.Msg {
	switch opt := request.IsEdns0(); {
	case request.Opcode != dns.OpcodeQuery:
		return failure(request, dns.RcodeNotImplemented)
	case len(request.Question) != 1:
		return failure(request, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return failure(request, dns.RcodeBadVers)
	}
	question := request.Question[0]
	if question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY {
		return failure(request, dns.RcodeRefused)
	}
	name := dns.CanonicalName(question.Name)
	if dns.IsSubDomain(s.zone, name) {
		if !s.synced() {
			return failure(request, dns.RcodeServerFailure)
		}
		return s.authoritative(ctx, request, name)
	}
	if addr, ok := reverseAddr(name); ok {
		if targets := s.reverse(addr); len(targets) > 0 {
			return s.pointers(request, targets)
		}
		if s.cfg.ClusterCIDR.Contains(addr) || s.cfg.ServiceCIDR.Contains(addr) {
			return s.negative(request, dns.RcodeNameError)
		}
	}
	return s.upstream.exchange(ctx, request)
}

func (s *Server) synced() bool {
	select {
	case <-s.cfg.Services.Synced():
		return true
	default:
		return false
	}
}

// authoritative answers a name of the cluster's zone.
func (s *Server) authoritative(ctx context.Context, request *dns.Msg, name string) *dns.Msg {
	question := request.Question[0]
	found := s.lookup(name, question.Qtype)
	if !found.exists {
		return s.negative(request, dns.RcodeNameError)
	}
	response := new(dns.Msg).SetReply(request)
	response.Authoritative, response.RecursionAvailable = true, true
	for _, record := range found.answer {
		// Answer with the name as it was asked: some clients compare case.
		if dns.CanonicalName(record.Header().Name) == name {
			record.Header().Name = question.Name
		}
		response.Answer = append(response.Answer, record)
	}
	response.Extra = found.extra
	if found.alias != "" {
		s.followAlias(ctx, request, response, found.alias)
	}
	if len(response.Answer) == 0 {
		response.Ns = []dns.RR{s.soa()}
	}
	return response
}

// aliasesMax is how many aliases are followed, one after the other.
const aliasesMax = 8

// followAlias adds what an ExternalName points to, so that stub resolvers,
// which do not chase, get an address: through other services, and out and in
// again. A circle ends where it closes.
func (s *Server) followAlias(ctx context.Context, request, response *dns.Msg, target string) {
	question := request.Question[0]
	owner, seen := question.Name, map[string]bool{dns.CanonicalName(question.Name): true}
	for range aliasesMax {
		response.Answer = append(response.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: target})
		if question.Qtype == dns.TypeCNAME || seen[target] {
			return
		}
		seen[target] = true
		if !dns.IsSubDomain(s.zone, target) {
			if owner, target = s.followOut(ctx, request, response, target); target == "" {
				return
			}
			continue
		}
		found := s.lookup(target, question.Qtype)
		if !found.exists {
			response.Rcode = dns.RcodeNameError
		}
		response.Answer = append(response.Answer, found.answer...)
		if owner, target = target, found.alias; target == "" {
			return
		}
	}
}

// followOut adds what others say of a name. Where they lead back into the
// cluster, it gives that alias.
func (s *Server) followOut(ctx context.Context, request, response *dns.Msg, name string) (owner, target string) {
	next := new(dns.Msg).SetQuestion(name, request.Question[0].Qtype)
	outside := s.upstream.exchange(ctx, next)
	response.Rcode = outside.Rcode
	response.Answer = append(response.Answer, outside.Answer...)
	if len(outside.Answer) == 0 {
		return "", ""
	}
	last, ok := outside.Answer[len(outside.Answer)-1].(*dns.CNAME)
	if !ok || !dns.IsSubDomain(s.zone, dns.CanonicalName(last.Target)) {
		return "", ""
	}
	response.Answer = response.Answer[:len(response.Answer)-1] // the caller adds it
	response.Rcode = dns.RcodeSuccess
	return last.Hdr.Name, dns.CanonicalName(last.Target)
}

func (s *Server) pointers(request *dns.Msg, targets []string) *dns.Msg {
	response := new(dns.Msg).SetReply(request)
	response.Authoritative, response.RecursionAvailable = true, true
	if qtype := request.Question[0].Qtype; qtype != dns.TypePTR && qtype != dns.TypeANY {
		response.Ns = []dns.RR{s.soa()}
		return response
	}
	for _, target := range targets {
		response.Answer = append(response.Answer, &dns.PTR{Hdr: header(request.Question[0].Name, dns.TypePTR), Ptr: target})
	}
	return response
}

// negative says that a name does not exist (NXDOMAIN).
func (s *Server) negative(request *dns.Msg, rcode int) *dns.Msg {
	response := new(dns.Msg).SetRcode(request, rcode)
	response.Authoritative, response.RecursionAvailable = true, true
	response.Ns = []dns.RR{s.soa()}
	return response
}

func failure(request *dns.Msg, rcode int) *dns.Msg {
	response := new(dns.Msg).SetRcode(request, rcode)
	response.RecursionAvailable = true
	if rcode == dns.RcodeBadVers {
		response.SetEdns0(udpSizeMax, false)
	}
	return response
}

// ttl of cluster names, in seconds: short, because pods move.
const ttl = 5

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// soa is the zone's start of authority; its minimum is how long resolvers
// remember that a name does not exist.
func (s *Server) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(s.zone, dns.TypeSOA), Ns: "ns.dns." + s.zone, Mbox: "hostmaster." + s.zone,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
