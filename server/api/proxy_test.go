package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/registry"
)

// fakeAgent is the HTTP server of a node's agent, and the way to it.
type fakeAgent struct{ *httptest.Server }

func (a fakeAgent) Transport(node string) (http.RoundTripper, error) {
	if node != "node-1" {
		return nil, errors.New("no such node")
	}
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return a.Dial(ctx, node) }}, nil
}

func (a fakeAgent) Dial(ctx context.Context, node string) (net.Conn, error) {
	if node != "node-1" {
		return nil, errors.New("no such node")
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", a.Listener.Addr().String())
}

// newFakeAgent knows logs, an echoing exec, and dials whatever it is asked to
// at the pod web server, told the address in a header.
func newFakeAgent(t testing.TB, pods http.Handler) fakeAgent {
	web := httptest.NewServer(pods)
	t.Cleanup(web.Close)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/default/p/c", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "log of c %s", r.URL.RawQuery)
	})
	mux.HandleFunc("GET /containerLogs/default/p/waiting", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, `container "waiting" in pod "p" is waiting to start: ContainerCreating`, http.StatusBadRequest)
	})
	mux.HandleFunc("/exec/default/p/c", func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s\n", r.Header.Get("Upgrade"), r.URL.RawQuery)
		io.Copy(conn, rw)
	})
	mux.HandleFunc("GET /dial", func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		to, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer to.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: orch-dial\r\n\r\n")
		finished := make(chan struct{})
		go func() { io.Copy(to, rw); to.Close(); close(finished) }()
		io.Copy(conn, to)
		conn.Close()
		<-finished
	})
	mux.HandleFunc("GET /stats/summary", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "stats") })
	agent := fakeAgent{httptest.NewServer(mux)}
	t.Cleanup(agent.Close)
	return agent
}

// newProxyServer has pod p on node-1 behind service s.
func newProxyServer(t testing.TB, pods http.Handler) *testServer {
	s := newTestServer(t, func(cfg *Config) { cfg.Nodes = newFakeAgent(t, pods) })
	name, port, ready := "http", int32(8080), true
	node := "node-1"
	make := func(plural, group string, ns string, obj registry.Object) {
		t.Helper()
		if _, err := s.reg.Create(t.Context(), s.reg.Lookup(group, "v1", plural), ns, obj, &metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	make("pods", "", "default", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: port}}}, {Name: "waiting"}}},
		Status:     corev1.PodStatus{PodIP: "10.42.0.9"},
	})
	make("pods", "", "default", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "unplaced"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}})
	make("pods", "", "default", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "stranded"}, Spec: corev1.PodSpec{NodeName: "gone", Containers: []corev1.Container{{Name: "c"}}}})
	make("nodes", "", "", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	make("services", "", "default", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: name, Port: 80}}}})
	make("endpointslices", "discovery.k8s.io", "default", &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.42.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"},
		}},
	})
	forged := func(service, address, pod string) {
		make("services", "", "default", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: service}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: name, Port: 80}}}})
		make("endpointslices", "discovery.k8s.io", "default", &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{address}, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pod}}},
		})
	}
	forged("loopback", "127.0.0.1", "p")
	forged("metadata", "169.254.169.254", "p")
	forged("elsewhere", "192.0.2.1", "p")
	forged("podless", "10.42.0.9", "none")
	return s
}

// A slice says any address; a proxy goes to pods alone.
func TestServiceProxyLeadsToPods(t *testing.T) {
	s := newProxyServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "reached") }))
	for service, code := range map[string]int{"s": 200, "loopback": 503, "metadata": 503, "elsewhere": 503, "podless": 503} {
		resp, err := s.Client().Get(s.URL + "/api/v1/namespaces/default/services/" + service + ":http/proxy/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("%s: %d, want %d", service, resp.StatusCode, code)
		}
	}
}

// Reading a node's statistics is one thing, running commands in its pods another.
func TestNodeProxyRunsNothingForReaders(t *testing.T) {
	s := newProxyServer(t, nil)
	for path, code := range map[string]int{
		"stats/summary": 200, "exec/default/p/c?command=id": 403, "attach/default/p/c": 403, "portForward/default/p": 403,
		"x/../exec/default/p/c": 403, "/exec/default/p/c": 403, "%65xec/default/p/c": 403, "run/default/p/c": 403, "dial?address=127.0.0.1:22": 403,
	} {
		q, err := http.NewRequest("GET", s.URL+"/api/v1/nodes/node-1/proxy/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		recorded := httptest.NewRecorder()
		s.api.cfg.Authorizer = verbsOnly{"get"}
		s.api.ServeHTTP(recorded, q)
		if recorded.Code != code {
			t.Errorf("%s: %d, want %d", path, recorded.Code, code)
		}
		s.api.cfg.Authorizer = verbsOnly{"get", "create"}
		if recorded = httptest.NewRecorder(); strings.HasPrefix(path, "dial") {
			if s.api.ServeHTTP(recorded, q); recorded.Code != 404 {
				t.Errorf("%s is for servers alone: %d", path, recorded.Code)
			}
		}
	}
}

// verbsOnly lets everybody do these.
type verbsOnly []string

func (v verbsOnly) Authorize(_ context.Context, a *auth.Attributes) (bool, string, error) {
	return slices.Contains(v, a.Verb), "", nil
}

func TestNodeStreams(t *testing.T) {
	s := newProxyServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			w.Header().Set("Location", "/there")
			w.WriteHeader(http.StatusFound)
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, `<a href="/other">x</a>`)
		default:
			fmt.Fprintf(w, "%s %s auth=%q", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"))
		}
	}))
	client := *s.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, c := range []struct {
		path string
		code int
		want string
	}{
		{"/api/v1/namespaces/default/pods/p/log?container=c&tailLines=3&follow=true", 200, "log of c follow=true&tailLines=3"},
		{"/api/v1/namespaces/default/pods/p/log", 400, "a container name must be specified for pod p, choose one of: [c waiting]"},
		{"/api/v1/namespaces/default/pods/p/log?container=x", 400, "container x is not valid for pod p"},
		{"/api/v1/namespaces/default/pods/p/log?container=waiting", 400, `container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating`},
		{"/api/v1/namespaces/default/pods/p/log?container=c&sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0: must be greater than 0"},
		{"/api/v1/namespaces/default/pods/p/log?container=c&tailLines=x", 400, "invalid syntax"},
		{"/api/v1/namespaces/default/pods/unplaced/log", 204, ""},
		{"/api/v1/namespaces/default/pods/none/log", 404, `pods \"none\" not found`},
		{"/api/v1/namespaces/default/pods/unplaced/exec?command=x", 400, "pod unplaced does not have a host assigned"},
		{"/api/v1/namespaces/default/pods/stranded/exec?command=x", 404, `nodes \"gone\" not found`},
		{"/api/v1/namespaces/default/pods/stranded/log", 404, `nodes \"gone\" not found`},
		{"/api/v1/namespaces/default/pods/p/exec?container=c&command=x", 400, "Upgrade request required"},
		{"/api/v1/namespaces/default/pods/p/exec?dryRun=All", 400, "dryRun is not supported"},
		{"/api/v1/namespaces/default/pods/p/proxy", 301, ""},
		{"/api/v1/namespaces/default/pods/p/proxy/a/b?c=d", 200, `GET /a/b?c=d auth=""`},
		{"/api/v1/namespaces/default/pods/http:p:8080/proxy/a/", 200, `GET /a/ auth=""`},
		{"/api/v1/namespaces/default/pods/p/proxy/page", 200, `href="` + "/api/v1/namespaces/default/pods/p/proxy/other"},
		{"/api/v1/namespaces/default/pods/unplaced/proxy/", 400, "address not allowed"},
		{"/api/v1/namespaces/default/services/s:http/proxy/x", 200, "GET /x"},
		{"/api/v1/namespaces/default/services/s:80/proxy/x", 200, "GET /x"},
		{"/api/v1/namespaces/default/services/s:81/proxy/x", 503, `no service port 81 found for service \"s\"`},
		{"/api/v1/namespaces/default/services/s/proxy/x", 503, `no endpoints available for service \"s\"`},
		{"/api/v1/namespaces/default/services/none/proxy/x", 404, "not found"},
		{"/api/v1/nodes/node-1/proxy/stats/summary", 200, "stats"},
		{"/api/v1/nodes/node-1:10250/proxy/stats/summary", 200, "stats"},
		{"/api/v1/nodes/node-9/proxy/stats/summary", 404, "not found"},
	} {
		req, err := http.NewRequest("GET", s.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || !strings.Contains(strings.ReplaceAll(string(body), s.URL, ""), c.want) {
			t.Errorf("%s: %d %s", c.path, resp.StatusCode, body)
		}
	}
	resp, err := client.Get(s.URL + "/api/v1/namespaces/default/pods/p/proxy/moved")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Location"); !strings.HasSuffix(got, "/api/v1/namespaces/default/pods/p/proxy/there") {
		t.Errorf("redirected to %s", got)
	}
}

// dialPlain opens a bare HTTP/1.1 connection to the API.
func dialPlain(t *testing.T, s *testServer) net.Conn {
	t.Helper()
	server := httptest.NewServer(s.api)
	t.Cleanup(server.Close)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestExecTunnel(t *testing.T) {
	s := newProxyServer(t, http.NotFoundHandler())
	conn := dialPlain(t, s)
	io.WriteString(conn, "POST /api/v1/namespaces/default/pods/p/exec?container=c&command=sh&command=-c&stdin=true&stdout=1&stderr=false&tty=true HTTP/1.1\r\n"+
		"Host: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n")
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%v %v", resp, err)
	}
	if line, _ := reader.ReadString('\n'); line != "command=sh&command=-c&input=1&output=1&tty=1\n" {
		t.Errorf("the agent was asked %q", line)
	}
	io.WriteString(conn, "hello\n")
	if line, _ := reader.ReadString('\n'); line != "hello\n" {
		t.Errorf("echoed %q", line)
	}
	s.api.Close() // ends the tunnel
	if _, err := reader.ReadByte(); err == nil {
		t.Error("the tunnel outlived the server")
	}
}

func TestLogByWebSocket(t *testing.T) {
	s := newProxyServer(t, http.NotFoundHandler())
	config, err := websocket.NewConfig("wss"+strings.TrimPrefix(s.URL, "https")+"/api/v1/namespaces/default/pods/p/log?container=c", "http://x")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"binary.k8s.io"}
	config.TlsConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.TlsConfig.NextProtos = []string{"http/1.1"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var got string
	for {
		var message []byte
		if err := websocket.Message.Receive(ws, &message); err != nil {
			break
		}
		got += string(message)
	}
	if got != "log of c " {
		t.Errorf("got %q", got)
	}
}

// TestProxyPorts: what is no port is refused in words; some had been made part
// of an address that nothing can parse, and ended in a panic.
func TestProxyPorts(t *testing.T) {
	s := newProxyServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "web") }))
	for _, c := range []struct {
		path string
		code int
		part string
	}{
		{"/api/v1/namespaces/default/pods/p:8080/proxy/", 200, "web"},
		{"/api/v1/namespaces/default/pods/http:p:8080/proxy/", 200, "web"},
		{"/api/v1/namespaces/default/pods/p/proxy/", 200, "web"},
		{"/api/v1/namespaces/default/pods/p:-1/proxy/", 400, `invalid pod request \"p:-1\"`},
		{"/api/v1/namespaces/default/pods/p:http/proxy/", 400, `invalid pod request \"p:http\"`},
		{"/api/v1/namespaces/default/pods/p:%20/proxy/", 400, `invalid pod request`},
		{"/api/v1/namespaces/default/pods/p:%5B/proxy/", 400, `invalid pod request`},
		{"/api/v1/namespaces/default/pods/p:70000/proxy/", 503, "dial tcp: address 70000: invalid port"},
		{"/api/v1/namespaces/default/pods/p:0/proxy/", 503, "invalid port"},
		{"/api/v1/namespaces/default/pods/ftp:p:80/proxy/", 400, `invalid pod request \"ftp:p:80\"`},
		{"/api/v1/namespaces/default/pods/a:b:c:d/proxy/", 400, `invalid pod request \"a:b:c:d\"`},
		{"/api/v1/namespaces/default/pods/nobody:-1/proxy/", 404, "not found"},
		{"/api/v1/namespaces/default/services/s:-1/proxy/", 503, `no service port -1 found for service \"s\"`},
		{"/api/v1/namespaces/default/services/s:70000/proxy/", 503, `no service port 70000 found for service \"s\"`},
		{"/api/v1/namespaces/default/services/s:odd/proxy/", 503, `no endpoints available for service`},
		{"/api/v1/nodes/node-1:-1/proxy/", 400, `invalid node request \"node-1:-1\"`},
		{"/api/v1/nodes/node-1:99999/proxy/", 503, "invalid port"},
	} {
		resp, err := s.Client().Get(s.URL + c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || !strings.Contains(string(body), c.part) {
			t.Errorf("%s: %d %s, want %d %s", c.path, resp.StatusCode, body, c.code, c.part)
		}
	}
}

// FuzzProxyName: no name, port or scheme in a proxy's path is a failure of the
// server's own.
func FuzzProxyName(f *testing.F) {
	for _, seed := range []string{"p", "p:-1", "p:8080", "https:p:443", "ftp:p:1", ":::", "p:[", "p:%", "node-1:0", "s:http", "p:1/../../x", "\x00:1"} {
		f.Add(seed, "x")
	}
	s := newProxyServer(f, http.NotFoundHandler())
	f.Fuzz(func(t *testing.T, name, rest string) {
		for _, resource := range []string{"namespaces/default/pods", "namespaces/default/services", "nodes"} {
			req := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(t.Context())
			req.URL = &url.URL{Path: "/api/v1/" + resource + "/" + name + "/proxy/" + rest}
			out := httptest.NewRecorder()
			s.api.ServeHTTP(out, req)
			if out.Code == http.StatusInternalServerError {
				t.Errorf("%s: %s", req.URL.Path, out.Body)
			}
		}
	})
}
