package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	cacheMax    = 1024 // answers remembered
	cacheTTLMax = 30   // seconds an answer is remembered at most
)

// upstream asks the machine's own name servers and remembers answers for a while.
type upstream struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	from    source
	cache   map[cacheKey]cached
	flights map[cacheKey]*flight
	// asked has the questions on their way, with the case of their letters, which
	// is never the same twice.
	asked map[dns.Question]*server
}

type cacheKey struct {
	question dns.Question // its name in lower case
	do, cd   bool
}

type cached struct {
	response *dns.Msg
	stored   time.Time
	expires  time.Time
}

func newUpstream(path string, self netip.Addr, log *slog.Logger) *upstream {
	return &upstream{
		log: log, from: source{path: path, self: self},
		cache: make(map[cacheKey]cached), flights: make(map[cacheKey]*flight), asked: make(map[dns.Question]*server),
	}
}

// exchange answers a query from the cache or by asking, along with others who ask
// the same; SERVFAIL where nobody answers.
func (u *upstream) exchange(ctx context.Context, request *dns.Msg) *dns.Msg {
	now := time.Now()
	if u.leadsBack(request.Question[0], now) {
		return failure(request, dns.RcodeServerFailure)
	}
	if response := u.remembered(request, now); response != nil {
		return response
	}
	key := keyOf(request)
	u.mu.Lock()
	f := u.flights[key]
	if f != nil {
		u.mu.Unlock()
		return f.join(ctx, request)
	}
	servers := inOrder(u.from.current(now), now)
	if len(servers) == 0 {
		u.mu.Unlock()
		return failure(request, dns.RcodeServerFailure)
	}
	f = &flight{landed: make(chan struct{})}
	u.flights[key] = f
	u.mu.Unlock()
	if response := u.fly(ctx, key, servers); response != nil {
		unmix(response, key.question.Name)
		f.response = withoutOptions(response)
		u.remember(key, f.response, time.Now())
	}
	u.mu.Lock()
	delete(u.flights, key)
	u.mu.Unlock()
	close(f.landed)
	return reply(request, f.response)
}

// join waits for the answer to somebody else's question.
func (f *flight) join(ctx context.Context, request *dns.Msg) *dns.Msg {
	select {
	case <-f.landed:
		return reply(request, f.response)
	case <-ctx.Done():
		return failure(request, dns.RcodeServerFailure)
	}
}

// reply is a response in the words of the one who asked.
func reply(request, response *dns.Msg) *dns.Msg {
	if response == nil {
		return failure(request, dns.RcodeServerFailure)
	}
	own := response.Copy()
	own.Id, own.Question, own.RecursionDesired, own.RecursionAvailable = request.Id, request.Question, request.RecursionDesired, true
	unmix(own, request.Question[0].Name)
	return own
}

// withoutOptions drops what concerns only the way from the server to us.
func withoutOptions(response *dns.Msg) *dns.Msg {
	response.Extra = slices.DeleteFunc(response.Extra, func(r dns.RR) bool { return r.Header().Rrtype == dns.TypeOPT })
	return response
}

// sent notes a question; unsent, that it is not waited for any more.
func (u *upstream) sent(q dns.Question, to *server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked[q] = to
}

func (u *upstream) unsent(q dns.Question) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.asked, q)
}

// telling is how many letters the name of a question must have for its case to
// tell that it is ours.
const telling = 12

// leadsBack tells whether a query is one of our own that came back: then its
// server only asks us, or somebody who does.
func (u *upstream) leadsBack(q dns.Question, now time.Time) bool {
	u.mu.Lock()
	to := u.asked[q]
	u.mu.Unlock()
	if to == nil || letters(q.Name) < telling || q.Name == dns.CanonicalName(q.Name) {
		return false
	}
	if !to.loops(now) {
		u.log.Warn("a name server of this machine asks the cluster's DNS for what it is asked: names outside the cluster cannot be had from it (see --resolv-conf)", "server", to.address)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	to.looped = now
	return true
}

func letters(name string) (count int) {
	for _, c := range name {
		if lower := c | 0x20; lower >= 'a' && lower <= 'z' {
			count++
		}
	}
	return count
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
	response := reply(request, hit.response)
	age := uint32(now.Sub(hit.stored) / time.Second)
	for _, record := range slices.Concat(response.Answer, response.Ns, response.Extra) {
		h := record.Header()
		h.Ttl -= min(age, h.Ttl)
	}
	return response
}

// remember caches what may be cached: whole answers and denials (RFC 2308).
func (u *upstream) remember(key cacheKey, response *dns.Msg, now time.Time) {
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
	u.cache[key] = cached{response.Copy(), now, now.Add(time.Duration(ttl) * time.Second)}
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
