package serve

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// streamOptions are the streams that an exec or attach asks for.
type streamOptions struct {
	stdin, stdout, stderr, tty bool
}

func optionsOf(r *http.Request) streamOptions {
	q := r.URL.Query()
	has := func(names ...string) bool {
		for _, n := range names {
			if isTrue(q.Get(n)) {
				return true
			}
		}
		return false
	}
	o := streamOptions{stdin: has("input", "stdin"), stdout: has("output", "stdout"), stderr: has("error", "stderr"), tty: has("tty")}
	if o.tty {
		o.stderr = false // a terminal has one output
	}
	return o
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	c, ok := s.container(w, r)
	if !ok {
		return
	}
	o := optionsOf(r)
	resp, err := s.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: r.URL.Query()["command"], Tty: o.tty, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr,
	})
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	s.stream(w, r, resp.Url, o)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	c, ok := s.container(w, r)
	if !ok {
		return
	}
	o := optionsOf(r)
	resp, err := s.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Tty: o.tty, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr})
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	s.stream(w, r, resp.Url, o)
}

// stream connects the client with the runtime's streaming server. Runtimes
// speak SPDY and older WebSocket protocols; version 5 is translated here.
func (s *server) stream(w http.ResponseWriter, r *http.Request, location string, o streamOptions) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.translate(w, r, location, o)
		return
	}
	s.pass(w, r, location)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	sandbox, _ := s.Pods.Sandbox(namespace, name, types.UID(r.URL.Query().Get("uid")))
	if sandbox == "" {
		s.fail(w, http.StatusNotFound, "pod %s/%s is not running here", namespace, name)
		return
	}
	resp, err := s.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox})
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.tunnel(w, r, resp.Url)
		return
	}
	s.pass(w, r, resp.Url)
}

// upgradeTime is how long the runtime's streaming server may take to answer.
const upgradeTime = 30 * time.Second

// upgrade sends the client's request for an upgrade to the runtime's streaming
// server and gives the connection and its answer.
func upgrade(r *http.Request, location string, change func(http.Header)) (net.Conn, *bufio.Reader, *http.Response, error) {
	u, err := url.Parse(location)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("the runtime's streaming address: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", u.Host)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("reach the runtime's streaming server: %w", err)
	}
	req := r.Clone(r.Context())
	// The streaming address stands for all that was asked; parameters that the
	// client added (ports of a WebSocket port-forward) go along.
	if u.RawQuery == "" {
		u.RawQuery = r.URL.RawQuery
	}
	req.URL, req.Host, req.RequestURI = u, u.Host, ""
	if change != nil {
		change(req.Header)
	}
	// The runtime is asked for nothing but to begin; what follows may take as long
	// as it likes.
	_ = conn.SetDeadline(time.Now().Add(upgradeTime))
	reader := bufio.NewReader(conn)
	if err = req.Write(conn); err == nil {
		var resp *http.Response
		if resp, err = http.ReadResponse(reader, req); err == nil {
			_ = conn.SetDeadline(time.Time{})
			return conn, reader, resp, nil
		}
	}
	conn.Close()
	return nil, nil, nil, fmt.Errorf("ask the runtime's streaming server: %w", err)
}

// pass hands the upgraded connection through as it is.
func (s *server) pass(w http.ResponseWriter, r *http.Request, location string) {
	backend, reader, resp, err := upgrade(r, location, nil)
	if err != nil {
		s.fail(w, http.StatusBadGateway, "%v", err)
		return
	}
	defer backend.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = bufio.NewReader(resp.Body).WriteTo(w) // an error answer; the client may be gone
		return
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", resp.Status)
	_ = resp.Header.Write(&head) // a Builder does not fail
	head.WriteString("\r\n")
	client, err := hijack(w, head.String())
	if err != nil {
		s.log.Debug("upgrade", "err", err)
		return
	}
	defer client.Close()
	splice(client, &readerConn{backend, reader})
}
