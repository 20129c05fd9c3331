package abuse

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// who attacks.
type who int

const (
	stranger who = iota // without credentials
	nobody              // a service account without any right
	tenant              // one that may do everything in its own namespace
)

// attack is one way to hurt a server. Its run goes on until a.ctx ends, and
// notes what becomes of its requests.
type attack struct {
	name string
	as   who
	run  func(*attacker)
}

// attacks are all that are tried. To add one, write what it does and a line here.
var attacks = []attack{
	{"harmless requests", nobody, manyRequests}, // what the others are compared with
	{"unread answers", nobody, unreadAnswers},
	{"unread lists", tenant, unreadLists},
	{"slow bodies of strangers", stranger, slowBodies},
	{"slow bodies of a tenant", tenant, slowBodies},
	{"slow headers", stranger, slowHeaders},
	{"silent connections", stranger, silentConnections},
	{"unread watches", tenant, unreadWatches},
	{"rapid reset", stranger, flood(rapidReset)},
	{"PING flood", stranger, flood(func(f *frames, _ uint32) error { return f.framer.WritePing(false, [8]byte{}) })},
	{"SETTINGS flood", stranger, flood(func(f *frames, _ uint32) error { return f.framer.WriteSettings() })},
	{"empty DATA flood", stranger, flood(emptyData)},
	{"CONTINUATION flood", stranger, flood(continuation)},
	{"wrong join tokens", stranger, wrongJoinTokens},
	{"forged bearer tokens", stranger, forgedTokens},
	{"streams without rights", nobody, upgrades},
}

// unreadAnswers asks for more than all slots, and reads none of the answers.
func unreadAnswers(a *attacker) {
	a.crowd(3, func(int) {
		f := a.frames(0)
		if f == nil {
			return
		}
		defer f.conn.Close()
		for range 640 {
			if _, err := f.request("GET", "/api/v1/pods", false); err != nil {
				break
			}
			a.note("unread", 0)
		}
		<-a.ctx.Done()
	})
}

// unreadLists reads the beginning of many lists.
func unreadLists(a *attacker) {
	body := fmt.Sprintf(`{"metadata":{"generateName":"big-"},"data":{"x":%q}}`, strings.Repeat("x", 300<<10))
	for range 5 {
		a.send(a.client(), "POST", a.path("configmaps"), "application/json", []byte(body))
	}
	a.crowd(3, func(int) {
		f := a.frames(1 << 10)
		if f == nil {
			return
		}
		defer f.conn.Close()
		for range 200 {
			if _, err := f.request("GET", a.path("configmaps"), false); err != nil {
				break
			}
			a.note("unread", 0)
		}
		<-a.ctx.Done()
	})
}

// path is that of resources in the tenant's namespace.
func (a *attacker) path(resource string) string {
	return "/api/v1/namespaces/" + a.Namespace + "/" + resource
}

// slowBodies promises bodies and sends a byte now and then.
func slowBodies(a *attacker) {
	a.crowd(200, func(int) {
		conn := a.dial("http/1.1")
		if conn == nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{",
			a.path("configmaps"), orInvalid(a.Token))
		began := time.Now()
		conn.SetReadDeadline(began.Add(2 * answerTime))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			a.note("broken off", time.Since(began))
			return
		}
		resp.Body.Close()
		a.note(resp.Status, time.Since(began))
	})
}

func orInvalid(token string) string {
	if token == "" {
		return "invalid"
	}
	return token
}

// slowHeaders never ends the header of its requests.
func slowHeaders(a *attacker) {
	a.crowd(300, func(int) {
		conn := a.dial("http/1.1")
		if conn == nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n")
		began := time.Now()
		conn.SetReadDeadline(began.Add(2 * answerTime))
		_, _ = io.Copy(io.Discard, conn)
		a.note("connection ended", time.Since(began))
	})
}

// silentConnections connects as often as it can and says nothing.
func silentConnections(a *attacker) {
	var open []net.Conn
	for a.ctx.Err() == nil && len(open) < 5000 {
		conn, err := (&net.Dialer{}).DialContext(a.ctx, "tcp", a.Address)
		if err != nil {
			continue
		}
		open = append(open, conn)
		a.note("silent", 0)
	}
	<-a.ctx.Done()
	for _, conn := range open {
		conn.Close()
	}
}

// unreadWatches opens watches by the thousand, makes events and reads nothing.
func unreadWatches(a *attacker) {
	for range 20 {
		f := a.frames(100)
		if f == nil {
			continue
		}
		defer f.conn.Close()
		for range 250 {
			if _, err := f.request("GET", a.path("configmaps")+"?watch=1", false); err != nil {
				break
			}
			a.note("unread", 0)
		}
	}
	client := a.client()
	body := fmt.Sprintf(`{"metadata":{"generateName":"event-"},"data":{"x":%q}}`, strings.Repeat("x", 100<<10))
	a.crowd(1, func(int) { a.send(client, "POST", a.path("configmaps"), "application/json", []byte(body)) })
}

// manyRequests sends as many requests as it can, and reads the answers.
func manyRequests(a *attacker) {
	clients := [4]*http.Client{a.client(), a.client(), a.client(), a.client()}
	a.crowd(200, func(worker int) { a.send(clients[worker%len(clients)], "GET", "/api/v1/pods", "", nil) })
}

func rapidReset(f *frames, _ uint32) error {
	stream, err := f.request("GET", "/api/v1/pods", false)
	if err != nil {
		return err
	}
	return f.framer.WriteRSTStream(stream, http2.ErrCodeCancel)
}

func emptyData(f *frames, i uint32) error {
	if i == 0 {
		_, err := f.request("POST", "/api/v1/pods", true)
		return err
	}
	return f.framer.WriteData(1, false, nil)
}

func continuation(f *frames, i uint32) error {
	if i == 0 {
		return f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
	}
	return f.framer.WriteContinuation(1, false, nil)
}

// wrongJoinTokens guesses, at both doors.
func wrongJoinTokens(a *attacker) {
	client := a.client()
	a.crowd(20, func(worker int) {
		path := [...]string{"/v1-orch/agent/join", "/v1-orch/server/join"}[worker%2]
		req, err := http.NewRequestWithContext(a.ctx, "POST", "https://"+a.Address+path, strings.NewReader("{}"))
		if err != nil {
			a.problem("%v", err)
			return
		}
		req.SetBasicAuth("node", "wrong")
		began := time.Now()
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			a.note(resp.Status, time.Since(began))
		}
	})
}

// forgedTokens has the server verify signatures that are wrong.
func forgedTokens(a *attacker) {
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	a.Token = part(`{"alg":"ES256"}`) + "." + part(`{"iss":"https://kubernetes.default.svc.cluster.local"}`) + "." + part(strings.Repeat("x", 64))
	client := a.client()
	a.crowd(100, func(int) { a.send(client, "GET", "/api/v1/pods", "", nil) })
}

// upgrades asks for streams of all kinds without the right to them.
func upgrades(a *attacker) {
	heads := []string{
		"GET /api/v1/namespaces/kube-system/pods/x/exec?command=sh HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
		"POST /api/v1/namespaces/kube-system/pods/x/portforward HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
		"GET /api/v1/pods?watch=1 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
	}
	a.crowd(50, func(worker int) {
		conn := a.dial("http/1.1")
		if conn == nil {
			return
		}
		defer conn.Close()
		a.ask(conn, heads[worker%len(heads)])
	})
}

// ask sends the head of a request as it is, with the attacker's token.
func (a *attacker) ask(conn *tls.Conn, head string) {
	fmt.Fprintf(conn, "%sHost: x\r\nAuthorization: Bearer %s\r\n\r\n", head, orInvalid(a.Token))
	began := time.Now()
	conn.SetReadDeadline(began.Add(2 * answerTime))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		a.note("broken off", time.Since(began))
		return
	}
	a.note(resp.Status, time.Since(began))
}
