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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer is a name server of the test's own, UDP and TCP at one port.
type nameServer struct {
	address string
	udp     atomic.Int64 // queries that came
	tcp     atomic.Int64
}

// serveNames answers as handle says; a nil answer is none.
func serveNames(t *testing.T, handle func(request *dns.Msg, isTCP bool) *dns.Msg) *nameServer {
	t.Helper()
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{address: packets.LocalAddr().String()}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		_, isTCP := w.RemoteAddr().(*net.TCPAddr)
		if isTCP {
			n.tcp.Add(1)
		} else {
			n.udp.Add(1)
		}
		if response := handle(request, isTCP); response != nil {
			_ = w.WriteMsg(response)
		}
	})
	var serving sync.WaitGroup
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		serving.Go(func() { _ = server.ActivateAndServe() })
	}
	t.Cleanup(func() { packets.Close(); listener.Close(); serving.Wait() })
	return n
}

// yes is the answer that all names get.
func yes(request *dns.Msg) *dns.Msg {
	response := new(dns.Msg).SetReply(request)
	record, _ := dns.NewRR(request.Question[0].Name + " 60 IN A 203.0.113.9")
	response.Answer = []dns.RR{record}
	return response
}

func answerTo(s *Server, name string) *dns.Msg {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	return s.Answer(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA), false)
}

func expectYes(t *testing.T, s *Server, name string) {
	t.Helper()
	if got := answerTo(s, name); text(got) != "A 203.0.113.9" || got.Answer[0].Header().Name != name {
		t.Errorf("%s: %v", name, got)
	}
}

// TestSilentName asks for a name that nobody answers: it alone fails.
func TestSilentName(t *testing.T) {
	n := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg {
		if strings.EqualFold(request.Question[0].Name, "drop.example.com.") {
			return nil
		}
		return yes(request)
	})
	s := newServer(t, "")
	askOnly(s, n.address)
	failed := make(chan string)
	go func() { failed <- text(answerTo(s, "drop.example.com.")) }()
	for i := 0; ; i++ {
		select {
		case got := <-failed:
			if got != "SERVFAIL" || i == 0 {
				t.Errorf("a name that nobody answers: %s", got)
			}
			if s.upstream.from.servers[0].silent() {
				t.Error("one name made the server a silent one")
			}
			return
		default:
			expectYes(t, s, fmt.Sprintf("fast-%d.example.com.", i))
		}
	}
}

// TestLateAndLost has answers come late, or only to the second query.
func TestLateAndLost(t *testing.T) {
	var seen atomic.Int64
	n := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg {
		if strings.HasPrefix(strings.ToLower(request.Question[0].Name), "late") {
			<-time.After(1800 * time.Millisecond) // so long as the server needs
			return yes(request)
		}
		if seen.Add(1) == 1 {
			return nil // lost
		}
		return yes(request)
	})
	s := newServer(t, "")
	askOnly(s, n.address)
	expectYes(t, s, "lost.example.com.")
	expectYes(t, s, "late.example.com.")
}

// TestFailover has several servers of which one answers.
func TestFailover(t *testing.T) {
	good := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg { return yes(request) })
	silent := serveNames(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	refusing := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(request, dns.RcodeRefused) })
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	s := newServer(t, "")
	askOnly(s, closed.LocalAddr().String(), refusing.address, silent.address, good.address)
	for i := range silentAfter + 1 {
		expectYes(t, s, fmt.Sprintf("a%d.example.com.", i))
	}
	before := silent.udp.Load()
	expectYes(t, s, "b.example.com.")
	if silent.udp.Load() != before {
		t.Error("a server that says nothing is still asked before others")
	}
	askOnly(s, refusing.address)
	if got := text(answerTo(s, "c.example.com.")); got != "REFUSED" {
		t.Errorf("from one that refuses: %s", got)
	}
}

// TestForgedAnswers come from whoever guesses: another number, question or case.
func TestForgedAnswers(t *testing.T) {
	forged := func(request *dns.Msg, change func(*dns.Msg)) *dns.Msg {
		response := yes(request)
		response.Answer[0].(*dns.A).A = net.IPv4(6, 6, 6, 6)
		change(response)
		return response
	}
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		for _, change := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Response = false },
			func(m *dns.Msg) { m.Question = nil },
			func(m *dns.Msg) { m.Question[0].Name = "other.example.com." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		} {
			_ = w.WriteMsg(forged(request, change))
		}
		_, _ = w.Write([]byte{1, 2, 3})
		fromElsewhere, _ := forged(request, func(*dns.Msg) {}).Pack()
		_, _ = other.WriteTo(fromElsewhere, w.RemoteAddr())
		_ = w.WriteMsg(yes(request))
	})}
	serving.Go(func() { _ = server.ActivateAndServe() })
	defer serving.Wait()
	defer packets.Close()
	defer other.Close()
	s := newServer(t, "")
	askOnly(s, packets.LocalAddr().String())
	expectYes(t, s, "much-longer-than-needed.example.com.")
}

// TestFoldedCase is a server that answers in lower case: it is asked by TCP, where
// nobody can put in a word.
func TestFoldedCase(t *testing.T) {
	n := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg {
		request.Question[0].Name = dns.CanonicalName(request.Question[0].Name)
		return yes(request)
	})
	s := newServer(t, "")
	askOnly(s, n.address)
	expectYes(t, s, "quite-a-long-name-with-letters.example.com.")
	if n.tcp.Load() != 1 {
		t.Errorf("asked %d times by TCP", n.tcp.Load())
	}
}

// TestLongAnswer is had by TCP, and cut for those who ask by UDP.
func TestLongAnswer(t *testing.T) {
	n := serveNames(t, func(request *dns.Msg, isTCP bool) *dns.Msg {
		response := yes(request)
		for i := range 200 {
			record, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 203.0.113.%d", request.Question[0].Name, i))
			response.Answer = append(response.Answer, record)
		}
		if !isTCP {
			response.Truncate(dns.MinMsgSize)
		}
		return response
	})
	s := newServer(t, "")
	askOnly(s, n.address)
	request := new(dns.Msg).SetQuestion("long.example.com.", dns.TypeA)
	if got := s.Answer(context.Background(), request, false); !got.Truncated || got.Len() > dns.MinMsgSize {
		t.Errorf("by UDP: %d bytes, truncated %v", got.Len(), got.Truncated)
	}
	if got := s.Answer(context.Background(), request, true); len(got.Answer) != 201 || got.Truncated {
		t.Errorf("by TCP: %d records", len(got.Answer))
	}
	if n.udp.Load() != 1 || n.tcp.Load() != 1 {
		t.Errorf("asked %d times by UDP and %d by TCP", n.udp.Load(), n.tcp.Load())
	}
}

// TestEqualQueries are asked once, and each is answered in its own words.
func TestEqualQueries(t *testing.T) {
	arrived, proceed := make(chan struct{}, 10), make(chan struct{})
	n := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg {
		arrived <- struct{}{}
		<-proceed
		return yes(request)
	})
	s := newServer(t, "")
	askOnly(s, n.address)
	names := []string{"same.example.com.", "SAME.example.com.", "same.EXAMPLE.com.", "same.example.com."}
	var asking sync.WaitGroup
	answers := make([]*dns.Msg, len(names))
	for i, name := range names {
		asking.Go(func() { answers[i] = answerTo(s, name) })
	}
	<-arrived
	close(proceed)
	asking.Wait()
	for i, name := range names {
		if a := answers[i]; text(a) != "A 203.0.113.9" || a.Question[0].Name != name || a.Answer[0].Header().Name != name {
			t.Errorf("%s: %v", name, a)
		}
	}
	if len(s.upstream.flights) != 0 || len(s.upstream.asked) != 0 {
		t.Errorf("left behind: %v %v", s.upstream.flights, s.upstream.asked)
	}
}

// TestLoop is a name server that asks the cluster's DNS: it is found out, and left
// alone while there is another.
func TestLoop(t *testing.T) {
	s := newServer(t, "")
	loop := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		return s.Answer(ctx, request, false)
	})
	askOnly(s, loop.address)
	if got := text(answerTo(s, "around-and-around-it-goes.example.com.")); got != "SERVFAIL" {
		t.Errorf("in a circle: %s", got)
	}
	good := serveNames(t, func(request *dns.Msg, _ bool) *dns.Msg { return yes(request) })
	s.upstream.from.servers = append(s.upstream.from.servers, &server{address: good.address})
	before := loop.udp.Load()
	expectYes(t, s, "around-and-around-it-went.example.com.")
	if loop.udp.Load() != before {
		t.Error("the server that leads back was asked again")
	}
}

// TestAdmission holds one client to its share, and gives it back.
func TestAdmission(t *testing.T) {
	a := newAdmission(5, 3)
	one, other := podAddr(1), podAddr(2)
	for i := range 4 {
		if got := a.enter(one); got != (i < 3) {
			t.Errorf("query %d of one client: %v", i, got)
		}
	}
	for i := range 3 {
		if got := a.enter(other); got != (i < 2) {
			t.Errorf("query %d of another: %v", i, got)
		}
	}
	a.leave(one)
	if !a.enter(other) {
		t.Error("what was left is not free")
	}
	for range 2 {
		a.leave(one)
	}
	for range 3 {
		a.leave(other)
	}
	if a.all != 0 || len(a.by) != 0 {
		t.Errorf("left behind: %d %v", a.all, a.by)
	}
}

// TestConnections opens more connections than one client may have.
func TestConnections(t *testing.T) {
	plain, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	bounded := &boundedListener{plain, newAdmission(connectionsMax, 2)}
	accepted := make(chan net.Conn, 10)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := bounded.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	})
	defer serving.Wait()
	defer plain.Close()
	var conns []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp4", plain.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	_ = conns[2].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conns[2].Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the third connection is open: %v", err)
	}
	first := <-accepted
	first.Close()
	first.Close() // twice counts once
	(<-accepted).Close()
	if n := bounded.admission.all; n != 0 {
		t.Errorf("%d connections are still counted", n)
	}
}

// TestHostFile finds the servers behind systemd-resolved's stub.
func TestHostFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := write("stub", "nameserver 127.0.0.53\noptions edns0\nsearch lan\n")
	plain := write("plain", "nameserver 192.0.2.53\n")
	real := write("real", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
	empty := write("empty", "# none yet\n")
	for path, want := range map[[2]string]string{
		{stub, real}: real, {stub, empty}: stub, {stub, "/none"}: stub, {plain, real}: plain, {"/none", real}: "/none",
	} {
		if got := hostFile(path[0], path[1]); got != want {
			t.Errorf("%v: %s, want %s", path, got, want)
		}
	}
}

// TestResolvConfChanges follows a file; servers that stay keep what is known of them.
func TestResolvConfChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	now := time.Now()
	f := source{path: path, self: podAddr(9)}
	step := func(content string, want ...string) {
		t.Helper()
		if content == "" {
			_ = os.Remove(path)
		} else if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(rereadAfter)
		var got []string
		for _, s := range f.current(now) {
			got = append(got, s.address)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", content, got, want)
		}
	}
	step("")
	step("nameserver 192.0.2.1\n", "192.0.2.1:53")
	known := f.servers[0]
	step("nameserver 192.0.2.7\nnameserver 192.0.2.1\nnameserver 192.0.2.7\n", "192.0.2.7:53", "192.0.2.1:53")
	if f.servers[1] != known {
		t.Error("a server that stayed was forgotten")
	}
	step("nameserver 10.42.0.9\n")
	step("")
	if f := (source{}); f.current(now) != nil {
		t.Error("without a file there are servers")
	}
}

// FuzzUpstream is what a name server may send back: only an answer to the question
// counts, and it can be given to the client.
func FuzzUpstream(f *testing.F) {
	query := newQuery(cacheKey{question: dns.Question{Name: "fuzzing.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}})
	good, _ := yes(query).Pack()
	f.Add(good)
	alias := yes(query)
	record, _ := dns.NewRR(query.Question[0].Name + " 60 IN CNAME x.EXAMPLE.com.")
	alias.Answer = append([]dns.RR{record}, alias.Answer...)
	packed, _ := alias.Pack()
	f.Add(packed)
	f.Add(good[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		response := new(dns.Msg)
		if response.Unpack(data) != nil || judge(query, response) != isAnswer {
			return
		}
		unmix(response, "fuzzing.example.com.")
		request := new(dns.Msg).SetQuestion("Fuzzing.Example.com.", dns.TypeA)
		own := reply(request, withoutOptions(response))
		if own.Id != request.Id || own.Question[0] != request.Question[0] {
			t.Errorf("another question is answered: %v", own)
		}
		_ = lifetime(own)
		own.Truncate(dns.MinMsgSize)
		_, _ = own.Pack() // records of unknown types may not pack; they must not panic
	})
}

func podAddr(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, last}) }
