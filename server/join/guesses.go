package join

import (
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// guesses slow down who tries one join token after the other. An address may
// send a few wrong ones at once, and one more every now and then; beyond that
// its tokens are not looked at. The zero value is ready.
type guesses struct {
	mu        sync.Mutex // guards what follows
	addresses map[string]*allowance
	wrong     int       // since the last line about it
	reported  time.Time // when that was
}

// allowance is how many wrong tokens an address may send now.
type allowance struct {
	left float64
	at   time.Time
}

const (
	guessesAtOnce = 20
	guessEvery    = 2 * time.Second
	// guessers bounds the addresses that are remembered; further ones share.
	guessers = 4096
	// guessReport is the time between two lines about wrong tokens.
	guessReport = time.Minute
)

// mayGuess tells whether a token from this address is looked at; if not, the
// request is answered.
func (g *guesses) mayGuess(w http.ResponseWriter, r *http.Request, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.addresses[g.key(addressOf(r), now)]; a == nil || a.refill(now) >= 1 {
		return true
	}
	w.Header().Set("Retry-After", "2")
	http.Error(w, "too many wrong tokens came from this address: wait, and take the token from <data-dir>/server/token or agent-token of a server", http.StatusTooManyRequests)
	return false
}

// guessed notes a wrong token.
func (g *guesses) guessed(r *http.Request, now time.Time, log *slog.Logger) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.addresses == nil {
		g.addresses = make(map[string]*allowance)
	}
	address := addressOf(r)
	key := g.key(address, now)
	a := g.addresses[key]
	if a == nil {
		a = &allowance{guessesAtOnce, now}
		g.addresses[key] = a
	}
	a.refill(now)
	a.left--
	g.wrong++
	if now.Sub(g.reported) >= guessReport {
		log.Warn("wrong join tokens", "component", "join", "count", g.wrong, "last", address, "addresses", len(g.addresses))
		g.wrong, g.reported = 0, now
	}
}

// key is what the address is remembered by; g.mu is held.
func (g *guesses) key(address string, now time.Time) string {
	if g.addresses[address] != nil || len(g.addresses) < guessers {
		return address
	}
	for other, a := range g.addresses {
		if a.refill(now) >= guessesAtOnce {
			delete(g.addresses, other)
		}
	}
	if len(g.addresses) < guessers {
		return address
	}
	return ""
}

func (a *allowance) refill(now time.Time) float64 {
	a.left = min(guessesAtOnce, a.left+now.Sub(a.at).Seconds()/guessEvery.Seconds())
	a.at = now
	return a.left
}

// addressOf is who asks: an address, or the IPv6 network that one host has to
// itself.
func addressOf(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address := from.Addr().Unmap()
	if address.Is6() {
		return netip.PrefixFrom(address.WithZone(""), 64).Masked().String()
	}
	return address.String()
}
