package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/server/auth"
	"orch/server/fairness"
	"orch/server/registry"
)

// recorded answers one request without a network.
func recorded(s *Server, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func TestPanicIsAnswered(t *testing.T) {
	table := testTable()
	table[0].Subresources = append(table[0].Subresources, &registry.Subresource{
		Name: "boom", New: func() runtime.Object { return &corev1.Pod{} },
		Create: func(context.Context, *registry.Registry, string, string, runtime.Object, *metav1.CreateOptions) (runtime.Object, error) {
			panic("boom")
		},
	})
	s := New(Config{Registry: newTestRegistry(t, table)})
	w := recorded(s, httptest.NewRequest("POST", "/api/v1/namespaces/a/pods/b/boom", strings.NewReader("{}")))
	status := decodeJSON[metav1.Status](t, w.Body.Bytes())
	if w.Code != 500 || status.Reason != metav1.StatusReasonInternalError {
		t.Errorf("%d %+v", w.Code, status)
	}
	if w := recorded(s, httptest.NewRequest("GET", "/version", nil)); w.Code != 200 {
		t.Errorf("after the panic: %d", w.Code)
	}
}

// oneUser is who every request comes from.
type oneUser struct{ groups []string }

// nobody is known.
type nobody struct{}

func (nobody) Authenticate(*http.Request) (*auth.User, error) { return nil, auth.ErrUnauthorized }

func (u *oneUser) Authenticate(*http.Request) (*auth.User, error) {
	return &auth.User{Name: "u", Groups: u.groups}, nil
}

// oneSeat are levels where everybody shares one seat and nobody waits long.
func oneSeat() *fairness.Levels {
	levels := fairness.NewLevels()
	levels.Everybody = fairness.NewLevel("everybody", fairness.Limits{
		Seats: 1, Queued: 10, FlowQueued: 10, Patience: 250 * time.Millisecond, Bytes: 100 << 20, FlowBytes: 100 << 20,
	})
	return levels
}

// Requests beyond the limit wait; those of other levels do not.
func TestSeatsOfLevels(t *testing.T) {
	for _, c := range []struct {
		path   string
		groups []string
		want   int
	}{
		{"/version", nil, 429},
		{"/livez", nil, 200},
		{"/version", []string{"system:masters"}, 200},
		{"/version", []string{"system:nodes"}, 200},
		{"/version", []string{"system:serviceaccounts"}, 200},
	} {
		user := &oneUser{}
		entered, leave := make(chan struct{}), make(chan struct{})
		s := New(Config{
			Registry: newTestRegistry(t, testTable()), Levels: oneSeat(), Authenticator: user,
			Paths: map[string]http.Handler{"/slow": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				entered <- struct{}{}
				<-leave
			})},
		})
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			recorded(s, httptest.NewRequest("GET", "/slow", nil))
		}()
		<-entered
		user.groups = c.groups
		w := recorded(s, httptest.NewRequest("GET", c.path, nil))
		if w.Code != c.want || c.want == 429 && w.Header().Get("Retry-After") != "1" {
			t.Errorf("%v %s: %d %v", c.groups, c.path, w.Code, w.Header())
		}
		close(leave)
		<-finished
		if w := recorded(s, httptest.NewRequest("GET", "/version", nil)); w.Code != 200 {
			t.Errorf("after the slow one: %d", w.Code)
		}
	}
}

func TestGzip(t *testing.T) {
	s := New(Config{Registry: newTestRegistry(t, testTable())})
	fillPods(t, s.cfg.Registry, 200)
	fetch := func(path, from string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Accept-Encoding", "gzip")
		r.RemoteAddr = from
		return recorded(s, r)
	}
	plain := fetch("/api/v1/pods", "127.0.0.1:1")
	if plain.Header().Get("Content-Encoding") != "" {
		t.Error("compressed for a client on this machine")
	}
	packed := fetch("/api/v1/pods", "192.0.2.1:1")
	if packed.Header().Get("Content-Encoding") != "gzip" || packed.Header().Get("Vary") != "Accept-Encoding" {
		t.Fatalf("not compressed: %v", packed.Header())
	}
	zip, err := gzip.NewReader(packed.Body)
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := io.ReadAll(zip)
	if err != nil || !bytes.Equal(unpacked, plain.Body.Bytes()) {
		t.Errorf("differs from the plain list: %v", err)
	}
	if small := fetch("/api/v1/pods?limit=1", "192.0.2.1:1"); small.Header().Get("Content-Encoding") != "" {
		t.Error("a small answer was compressed")
	}
}

// A client that promises a body and does not send it loses its slot in time.
func TestSlowBody(t *testing.T) {
	s := newTestServer(t, func(cfg *Config) { cfg.RequestTimeout = 20 * time.Millisecond })
	conn := dialPlain(t, s)
	io.WriteString(conn, "POST /api/v1/namespaces/a/configmaps HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%v %v", resp, err)
	}
}

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int32
	}{
		{context.DeadlineExceeded, 504},
		{errors.New("odd"), 500},
		{notAcceptable("a/b"), 406},
		{unreachable{errors.New("node n is not connected")}, 503},
	} {
		if status := statusOf(c.err); status.Code != c.code || status.Status != metav1.StatusFailure {
			t.Errorf("%v: %+v", c.err, status)
		}
	}
	lost := unreachable{errors.New("node n is not connected")}
	if got := statusOf(lost).Message; got != "error dialing backend: node n is not connected" || lost.Error() != "node n is not connected" {
		t.Errorf("got %q and %q", got, lost)
	}
}

func TestMetrics(t *testing.T) {
	s := New(Config{Registry: newTestRegistry(t, testTable())})
	recorded(s, httptest.NewRequest("GET", "/api/v1/pods", nil))
	recorded(s, httptest.NewRequest("GET", "/api/v1/made-up", nil))
	text := recorded(s, httptest.NewRequest("GET", "/metrics", nil)).Body.String()
	for _, want := range []string{
		`apiserver_request_total{code="200",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_duration_seconds_count{`, `apiserver_current_inflight_requests{request_kind="mutating"} 0`, `go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, "made-up") {
		t.Error("a path that a client made up became a label")
	}
}
