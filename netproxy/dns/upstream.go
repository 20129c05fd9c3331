package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	attemptTimeout = 1500 * time.Millisecond // for one try of one server
	rereadAfter    = 5 * time.Second         // resolv.conf is looked at no more often
	downFor        = 2 * time.Second         // after no server answered, queries fail at once this long
	cacheMax       = 1024                    // answers remembered
	cacheTTLMax    = 30                      // seconds an answer is remembered at most
)

// upstream asks the node's own name servers and remembers answers for a while.
type upstream struct {
	path string
	self netip.Addr // never asked: it is us

	mu        sync.Mutex // guards what follows
	servers   []string
	checked   time.Time // when path was looked at
	modified  time.Time // of path when it was read
	downUntil time.Time
	cache     map[cacheKey]cached
}

type cacheKey struct {
	question dns.Question
	do, cd   bool
}

type cached struct {
	response *dns.Msg
	stored   time.Time
	expires  time.Time
}

func newUpstream(path string, self netip.Addr) *upstream {
	return &upstream{path: path, self: self, cache: make(map[cacheKey]cached)}
}

// exchange answers a query from the cache or by asking; SERVFAIL at once where
// there is nobody to ask.
func (u *upstream) exchange(ctx context.Context, request *dns.Msg, isTCP bool) *dns.Msg {
	now := time.Now()
	if response := u.remembered(request, now); response != nil {
		return response
	}
	servers, down := u.current(now)
	if len(servers) == 0 || down {
		return failure(request, dns.RcodeServerFailure)
	}
	query := request.Copy()
	query.Id = dns.Id()
	query.Compress = true
	var refused *dns.Msg
	for _, server := range servers {
		response, err := ask(ctx, server, query, isTCP)
		if err != nil {
			continue
		}
		response.Id = request.Id
		response.Question = request.Question
		if response.Rcode == dns.RcodeServerFailure || response.Rcode == dns.RcodeRefused {
			refused = response
			continue
		}
		u.remember(request, response, now)
		return response
	}
	if refused != nil {
		return refused
	}
	if ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded {
		u.markDown(time.Now())
	}
	return failure(request, dns.RcodeServerFailure)
}

// ask sends a query to one server, over TCP where the answer is too long and
// the client can take it.
func ask(ctx context.Context, server string, query *dns.Msg, isTCP bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	client := &dns.Client{Net: "udp", Timeout: attemptTimeout, UDPSize: udpSizeMax}
	response, _, err := client.ExchangeContext(ctx, query, server)
	if err == nil && response.Truncated && isTCP {
		client.Net = "tcp"
		response, _, err = client.ExchangeContext(ctx, query, server)
	}
	return response, err
}

// current returns the servers to ask, reading resolv.conf again if it changed,
// and whether all of them failed just now.
func (u *upstream) current(now time.Time) (servers []string, down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now.Sub(u.checked) > rereadAfter {
		u.checked = now
		if info, err := os.Stat(u.path); err != nil {
			u.servers = nil
		} else if !info.ModTime().Equal(u.modified) {
			u.modified = info.ModTime()
			u.servers = readServers(u.path, u.self)
			u.downUntil = time.Time{}
		}
	}
	return u.servers, now.Before(u.downUntil)
}

func (u *upstream) markDown(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.downUntil = now.Add(downFor)
}

// readServers reads the name servers of a resolv.conf without ourselves, whom
// to ask would be a circle.
func readServers(path string, self netip.Addr) []string {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var servers []string
	for _, text := range config.Servers {
		if addr, err := netip.ParseAddr(text); err == nil && addr != self {
			servers = append(servers, net.JoinHostPort(text, config.Port))
		}
	}
	return slices.Compact(servers)
}

func keyOf(request *dns.Msg) cacheKey {
	key := cacheKey{question: request.Question[0], cd: request.CheckingDisabled}
	key.question.Name = dns.CanonicalName(key.question.Name)
	if opt := request.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	return key
}

// remembered returns a copy of a cached answer, aged.
func (u *upstream) remembered(request *dns.Msg, now time.Time) *dns.Msg {
	u.mu.Lock()
	hit, found := u.cache[keyOf(request)]
	u.mu.Unlock()
	if !found || now.After(hit.expires) {
		return nil
	}
	response := hit.response.Copy()
	response.Id = request.Id
	response.Question = request.Question
	age := uint32(now.Sub(hit.stored) / time.Second)
	for _, record := range slices.Concat(response.Answer, response.Ns, response.Extra) {
		if h := record.Header(); h.Rrtype != dns.TypeOPT {
			h.Ttl -= min(age, h.Ttl)
		}
	}
	return response
}

// remember caches what may be cached: whole answers and denials (RFC 2308).
func (u *upstream) remember(request, response *dns.Msg, now time.Time) {
	if response.Truncated || (response.Rcode != dns.RcodeSuccess && response.Rcode != dns.RcodeNameError) {
		return
	}
	ttl := lifetime(response)
	if ttl == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.cache) >= cacheMax {
		for key := range u.cache { // any one: the map's order is random enough
			delete(u.cache, key)
			break
		}
	}
	u.cache[keyOf(request)] = cached{response.Copy(), now, now.Add(time.Duration(ttl) * time.Second)}
}

// lifetime is how many seconds a response may be remembered.
func lifetime(response *dns.Msg) uint32 {
	life := uint32(cacheTTLMax)
	for _, record := range slices.Concat(response.Answer, response.Ns) {
		life = min(life, record.Header().Ttl)
		if soa, ok := record.(*dns.SOA); ok && len(response.Answer) == 0 {
			life = min(life, soa.Minttl)
		}
	}
	if len(response.Answer)+len(response.Ns) == 0 {
		return 0
	}
	return life
}
