package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// openWatch gives the lines of a JSON watch.
func openWatch(t *testing.T, s *testServer, path string, header ...string) *bufio.Scanner {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		t.Fatalf("watch: %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return lines
}

type event struct {
	Type   string
	Object struct {
		Kind     string
		Metadata metav1.ObjectMeta
		Code     int
	}
}

func nextEvent(t *testing.T, lines *bufio.Scanner) event {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the watch ended: %v", lines.Err())
	}
	return decodeJSON[event](t, lines.Bytes())
}

func createConfigMap(t *testing.T, s *testServer, name string, labels map[string]string) {
	t.Helper()
	res := s.reg.Lookup("", "v1", "configmaps")
	if _, err := s.reg.Create(t.Context(), res, "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func setLabel(t *testing.T, s *testServer, name, value string) {
	t.Helper()
	res := s.reg.Lookup("", "v1", "configmaps")
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"x":%q}}}`, value)
	if _, _, err := s.reg.Patch(t.Context(), res, "", "default", name, "application/merge-patch+json", patch, &metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestWatchFollowsSelection(t *testing.T) {
	s := newTestServer(t)
	all := openWatch(t, s, "/api/v1/configmaps?watch=1")
	some := openWatch(t, s, "/api/v1/configmaps?watch=1&labelSelector=x%3D1")
	metadata := openWatch(t, s, "/api/v1/configmaps?watch=1", "Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	createConfigMap(t, s, "a", map[string]string{"x": "0"})
	setLabel(t, s, "a", "1")
	setLabel(t, s, "a", "2")
	for _, c := range []struct {
		lines *bufio.Scanner
		kind  string
		want  string
	}{
		{all, "ConfigMap", "ADDED 1 0, MODIFIED 2 1, MODIFIED 3 2"},
		{metadata, "PartialObjectMetadata", "ADDED 1 0, MODIFIED 2 1, MODIFIED 3 2"},
		{some, "ConfigMap", "ADDED 2 1, DELETED 3 1"}, // leaves with its last labels, at the revision that made it leave
	} {
		var got []string
		for range strings.Count(c.want, ",") + 1 {
			e := nextEvent(t, c.lines)
			got = append(got, fmt.Sprintf("%s %s %s", e.Type, e.Object.Metadata.ResourceVersion, e.Object.Metadata.Labels["x"]))
			if e.Object.Kind != c.kind {
				t.Errorf("kind %s, want %s", e.Object.Kind, c.kind)
			}
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
	}
}

func TestWatchEndsWithServer(t *testing.T) {
	s := newTestServer(t)
	lines := openWatch(t, s, "/api/v1/configmaps?watch=1")
	createConfigMap(t, s, "a", nil)
	nextEvent(t, lines)
	s.api.Close()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("the watch did not end cleanly: %q, %v", lines.Text(), lines.Err())
	}
	if n := s.api.streams.count(); n != 0 {
		t.Errorf("%d streams are still open", n)
	}
}

func dialWatch(t *testing.T, s *testServer, path string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("wss"+strings.TrimPrefix(s.URL, "https")+path, "http://elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.TlsConfig.NextProtos = []string{"http/1.1"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

func TestWatchByWebSocket(t *testing.T) {
	s := newTestServer(t)
	ws := dialWatch(t, s, "/api/v1/configmaps?watch=1")
	createConfigMap(t, s, "a", nil)
	var message string
	if err := websocket.Message.Receive(ws, &message); err != nil {
		t.Fatal(err)
	}
	if e := decodeJSON[event](t, []byte(message)); e.Type != "ADDED" || e.Object.Metadata.Name != "a" {
		t.Errorf("got %s", message)
	}
}

// TestWatchFromForgottenRevision: the answer is 200, and the stream's one event
// tells that the revision is gone, whatever the transport.
func TestWatchFromForgottenRevision(t *testing.T) {
	s := newTestServer(t)
	createConfigMap(t, s, "a", nil)
	createConfigMap(t, s, "b", nil)
	createConfigMap(t, s, "c", nil)
	s.kv.Compact(s.kv.Revision())
	for _, query := range []string{
		"watch=1&resourceVersion=1",
		"watch=1&resourceVersion=1&allowWatchBookmarks=true",
		"watch=1&resourceVersion=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan",
	} {
		for _, accept := range []string{contentJSON, "application/json;as=Table;g=meta.k8s.io;v=v1", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"} {
			lines := openWatch(t, s, "/api/v1/namespaces/default/configmaps?"+query, "Accept", accept)
			if e := nextEvent(t, lines); e.Type != "ERROR" || e.Object.Kind != "Status" || e.Object.Code != 410 {
				t.Errorf("%s as %s: got %+v", query, accept, e)
			}
			if lines.Scan() {
				t.Errorf("%s as %s: more than one event: %s", query, accept, lines.Text())
			}
		}
	}
	ws := dialWatch(t, s, "/api/v1/configmaps?watch=1&resourceVersion=1")
	var message string
	if err := websocket.Message.Receive(ws, &message); err != nil {
		t.Fatal(err)
	}
	if e := decodeJSON[event](t, []byte(message)); e.Type != "ERROR" || e.Object.Code != 410 {
		t.Errorf("by WebSocket: %s", message)
	}
	resp := openProtobufWatch(t, s, "/api/v1/configmaps?watch=1&resourceVersion=1")
	if e := decodeProtobufEvent(t, resp); e.Type != "ERROR" || !bytes.Contains(e.Object.Raw, []byte(metav1.StatusReasonExpired)) {
		t.Errorf("as protobuf: %s", e)
	}
}

// openProtobufWatch gives the whole body of a watch that ends by itself.
func openProtobufWatch(t *testing.T, s *testServer, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", contentProtobuf+";stream=watch")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s %v", resp.Status, err)
	}
	return body
}

func decodeProtobufEvent(t *testing.T, frame []byte) metav1.WatchEvent {
	t.Helper()
	var e metav1.WatchEvent
	if len(frame) < 4 || e.Unmarshal(frame[4:]) != nil {
		t.Fatalf("no frame: %q", frame)
	}
	return e
}

func TestManyWatchersSeeEverythingInOrder(t *testing.T) {
	s := newTestServer(t)
	const watchers, objects = 20, 100
	var wg sync.WaitGroup
	for range watchers {
		lines := openWatch(t, s, "/api/v1/configmaps?watch=1")
		wg.Go(func() {
			for i := range objects {
				if !lines.Scan() {
					t.Errorf("ended after %d", i)
					return
				}
				if want := fmt.Sprintf(`"name":"c-%03d"`, i); !strings.Contains(lines.Text(), want) {
					t.Errorf("event %d: %s", i, lines.Text())
					return
				}
			}
		})
	}
	for i := range objects {
		createConfigMap(t, s, fmt.Sprintf("c-%03d", i), nil)
	}
	wg.Wait()
}

// A client that does not read must not keep the others, or a writer, waiting.
func TestSlowWatcherHoldsNobodyUp(t *testing.T) {
	s := newTestServer(t)
	openWatch(t, s, "/api/v1/configmaps?watch=1") // never read
	reader := openWatch(t, s, "/api/v1/configmaps?watch=1")
	big := strings.Repeat("x", 512*1024)
	res := s.reg.Lookup("", "v1", "configmaps")
	reader.Buffer(nil, 4<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range 20 {
		obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("big-", i)}, Data: map[string]string{"x": big}}
		if _, err := s.reg.Create(ctx, res, "default", obj, &metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		nextEvent(t, reader)
	}
}

func TestCellSharesFrames(t *testing.T) {
	var c cell
	made := 0
	encode := func() ([]byte, error) { made++; return []byte("frame"), nil }
	for range 3 {
		if frame, err := c.get(encode); err != nil || string(frame) != "frame" {
			t.Fatal(string(frame), err)
		}
	}
	if made == 0 || made > 3 {
		t.Errorf("encoded %d times", made)
	}
}
