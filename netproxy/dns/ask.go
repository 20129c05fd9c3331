package dns

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// udpSizeAsked is how long an answer in one datagram may be: what passes any
// network whole (www.dnsflagday.net/2020).
const udpSizeAsked = 1232

// ask sends a query to one server from a socket of its own, whose port nobody can
// guess, and waits for the answer until ctx ends. Answers that are too long for a
// datagram, or do not keep the letters' case, are asked for by TCP.
func ask(ctx context.Context, address string, query *dns.Msg) (*dns.Msg, error) {
	conn, err := dial(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		response, err := conn.ReadMsg()
		if response == nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		if response == nil {
			continue
		}
		switch what := judge(query, response); {
		case what == isForeign:
		case what == isFolded:
			return askTCP(ctx, address, query)
		case response.Truncated: // and perhaps cut within a record
			whole, tcpErr := askTCP(ctx, address, query)
			if tcpErr == nil || err != nil {
				return whole, tcpErr
			}
			return response, nil
		case err == nil:
			return response, nil
		}
	}
}

// tcpTimeout is for one query by TCP.
const tcpTimeout = 3 * time.Second

func askTCP(ctx context.Context, address string, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tcpTimeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	response, err := conn.ReadMsg()
	if err != nil {
		return nil, err
	}
	if judge(query, response) == isForeign {
		return nil, errors.New("answers another question")
	}
	return response, nil
}

// dial connects; packets from elsewhere do not come in. The end of ctx ends
// reading and writing.
func dial(ctx context.Context, network, address string) (*conn, error) {
	plain, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = plain.SetDeadline(time.Unix(1, 0)) })
	return &conn{dns.Conn{Conn: plain, UDPSize: udpSizeMax}, stop}, nil
}

type conn struct {
	dns.Conn
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// What a message is to a query.
const (
	isForeign = iota // something else
	isFolded         // an answer, but for the case of letters: anybody might know as much
	isAnswer
)

// judge compares a response with the query: nobody who does not see the query
// knows its number, its port and the case of its letters (draft-vixie-dnsext-dns0x20).
func judge(query, response *dns.Msg) int {
	if !response.Response || response.Id != query.Id || response.Opcode != dns.OpcodeQuery || len(response.Question) != 1 {
		return isForeign
	}
	asked, answered := query.Question[0], response.Question[0]
	switch {
	case asked == answered:
		return isAnswer
	case asked.Qtype == answered.Qtype && asked.Qclass == answered.Qclass && strings.EqualFold(asked.Name, answered.Name):
		return isFolded
	}
	return isForeign
}

// newQuery asks what a client asked, in our words.
func newQuery(key cacheKey) *dns.Msg {
	query := new(dns.Msg)
	query.Id = dns.Id()
	query.RecursionDesired, query.CheckingDisabled = true, key.cd
	query.Question = []dns.Question{key.question}
	query.Question[0].Name = mixCase(key.question.Name)
	query.SetEdns0(udpSizeAsked, key.do)
	return query
}

// mixCase gives each letter a case by chance.
func mixCase(name string) string {
	mixed := []byte(name)
	for i, c := range mixed {
		if lower := c | 0x20; lower >= 'a' && lower <= 'z' && !(i > 0 && mixed[i-1] == '\\') && rand.IntN(2) == 0 {
			mixed[i] = c ^ 0x20
		}
	}
	return string(mixed)
}

// unmix takes our mixed case out of a response: names that end as the question
// does were often only pointed at.
func unmix(response *dns.Msg, question string) {
	restore := func(name *string) {
		if cut := len(question) - len(*name); cut >= 0 && strings.EqualFold(*name, question[cut:]) {
			*name = question[cut:]
		}
	}
	for _, section := range [][]dns.RR{response.Answer, response.Ns, response.Extra} {
		for _, record := range section {
			restore(&record.Header().Name)
			switch r := record.(type) {
			case *dns.CNAME:
				restore(&r.Target)
			case *dns.SOA:
				restore(&r.Ns)
				restore(&r.Mbox)
			case *dns.NS:
				restore(&r.Ns)
			case *dns.MX:
				restore(&r.Mx)
			}
		}
	}
}
