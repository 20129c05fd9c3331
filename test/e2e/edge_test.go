package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// send makes a request with the administrator's certificate.
func (s *space) send(method, path, contentType string, body io.Reader) (int, metav1.Status) {
	s.Helper()
	config, err := s.node.Config()
	if err != nil {
		s.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		s.Fatal(err)
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(s.Context(), method, config.Host+path, body)
	if err != nil {
		s.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	answer, err := client.Do(request)
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		s.Fatal(err)
	}
	status := metav1.Status{}
	_ = json.Unmarshal(content, &status) // other objects have no status of this kind
	return answer.StatusCode, status
}

// TestBadRequests sends what a server must refuse, and wants upstream's answers.
func TestBadRequests(t *testing.T) {
	s := newSpace(t)
	maps := "/api/v1/namespaces/" + s.name + "/configmaps"
	named := func(name, rest string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q}%s}`, name, rest)
	}
	deep := strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000)
	for name, test := range map[string]struct {
		method, path, contentType, body string
		code                            int
		reason                          metav1.StatusReason
		text                            string
	}{
		"not JSON":      {"POST", maps, "application/json", "{", 400, metav1.StatusReasonBadRequest, "unexpected end of JSON input"},
		"other kind":    {"POST", maps, "application/json", `{"apiVersion":"v1","kind":"Secret"}`, 400, metav1.StatusReasonBadRequest, ""},
		"unknown field": {"POST", maps + "?fieldValidation=Strict", "application/json", named("x", `,"dta":{}`), 400, metav1.StatusReasonBadRequest, `unknown field "dta"`},
		"double field":  {"POST", maps + "?fieldValidation=Strict", "application/json", named("x", `,"data":{},"data":{}`), 400, metav1.StatusReasonBadRequest, `duplicate field "data"`},
		"bad name":      {"POST", maps, "application/json", named("Not_A_Name", ""), 422, metav1.StatusReasonInvalid, "a lowercase RFC 1123 subdomain must consist of"},
		"no name":       {"POST", maps, "application/json", `{"apiVersion":"v1","kind":"ConfigMap"}`, 422, metav1.StatusReasonInvalid, "name or generateName is required"},
		"too large":     {"POST", maps, "application/json", named("x", `,"data":{"a":"`+strings.Repeat("x", 3<<20)+`"}`), 413, metav1.StatusReasonRequestEntityTooLarge, "limit is 3145728"},
		"too deep":      {"POST", maps, "application/json", deep, 400, metav1.StatusReasonBadRequest, "max depth"},
		"too much data": {"POST", maps, "application/json", named("x", `,"data":{"a":"`+strings.Repeat("x", 1<<20+1)+`"}`), 422, metav1.StatusReasonInvalid, "Too long: may not be more than 1048576 bytes"},
		"media type":    {"POST", maps, "text/plain", named("x", ""), 415, metav1.StatusReasonUnsupportedMediaType, ""},
		"no such":       {"GET", maps + "/none", "", "", 404, metav1.StatusReasonNotFound, `configmaps "none" not found`},
		"no such path":  {"GET", "/apis/nowhere/v1", "", "", 404, "", ""},
		"method":        {"PATCH", maps, "application/merge-patch+json", "{}", 405, metav1.StatusReasonMethodNotAllowed, ""},
		"patch type":    {"PATCH", maps + "/x", "application/unknown", "{}", 415, metav1.StatusReasonUnsupportedMediaType, ""},
		"bad selector":  {"GET", maps + "?labelSelector=%21%21", "", "", 400, metav1.StatusReasonBadRequest, ""},
		"bad continue":  {"GET", maps + "?limit=1&continue=zzz", "", "", 400, metav1.StatusReasonBadRequest, "continue"},
		"in the future": {"GET", maps + "?resourceVersion=999999999&resourceVersionMatch=Exact", "", "", 504, metav1.StatusReasonTimeout, "Too large resource version"},
	} {
		code, status := s.send(test.method, test.path, test.contentType, strings.NewReader(test.body))
		if code != test.code || status.Reason != test.reason || !strings.Contains(status.Message, test.text) {
			t.Errorf("%s: %d %s %q, want %d %s %q", name, code, status.Reason, status.Message, test.code, test.reason, test.text)
		}
	}
	// All is well afterwards.
	s.run("create", "configmap", "fine")
}

func TestStaleRevision(t *testing.T) {
	s := newSpace(t)
	client := s.client().CoreV1().ConfigMaps(s.name)
	first, err := client.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second := first.DeepCopy()
	second.Data = map[string]string{"a": "b"}
	if _, err := client.Update(t.Context(), second, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	code, status := s.send("PUT", "/api/v1/namespaces/"+s.name+"/configmaps/x", "application/json",
		strings.NewReader(fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","resourceVersion":%q}}`, first.ResourceVersion)))
	if code != 409 || status.Reason != metav1.StatusReasonConflict || !strings.Contains(status.Message, "the object has been modified; please apply your changes to the latest version and try again") {
		t.Errorf("%d %s %q", code, status.Reason, status.Message)
	}
}

// TestLargeConfigMap stores the largest one allowed.
func TestLargeConfigMap(t *testing.T) {
	s := newSpace(t)
	client := s.client().CoreV1().ConfigMaps(s.name)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "large"}, Data: map[string]string{"a": strings.Repeat("x", 1<<20)}}
	if _, err := client.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Get(t.Context(), "large", metav1.GetOptions{}); err != nil || len(got.Data["a"]) != 1<<20 {
		t.Errorf("%v", err)
	}
}

// TestManyObjects lists 5,000 objects in pages while others change.
func TestManyObjects(t *testing.T) {
	s := newSpace(t)
	const count, page = 5000, 700
	client := s.client().CoreV1().ConfigMaps(s.name)
	var writers sync.WaitGroup
	for w := range 10 {
		writers.Go(func() {
			for i := w; i < count; i += 10 {
				object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m-%04d", i)}}
				if _, err := client.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	seen, options := map[string]bool{}, metav1.ListOptions{Limit: page}
	revision := ""
	for {
		list, err := client.List(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		if revision == "" {
			revision = list.ResourceVersion
			// Later pages must not show this.
			if _, err := client.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "n-late"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if list.ResourceVersion != revision {
			t.Errorf("page at revision %s, first page at %s", list.ResourceVersion, revision)
		}
		for _, item := range list.Items {
			if seen[item.Name] {
				t.Errorf("%s was listed twice", item.Name)
			}
			seen[item.Name] = true
		}
		if list.Continue == "" {
			break
		}
		if list.RemainingItemCount == nil {
			t.Error("a page does not tell how many remain")
		}
		options.Continue = list.Continue
	}
	delete(seen, "kube-root-ca.crt")
	if len(seen) != count {
		t.Errorf("%d objects listed, want %d", len(seen), count)
	}
	if seen["n-late"] {
		t.Error("a page shows what was created after the first")
	}
	if lines := strings.Count(s.run("get", "configmaps", "--no-headers"), "\n"); lines < count {
		t.Errorf("kubectl lists %d lines", lines)
	}
	if err := client.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// TestSlowWatcher opens a watch and never reads it; writers and another
// watcher must not notice.
func TestSlowWatcher(t *testing.T) {
	s := newSpace(t)
	config, err := s.node.Config()
	if err != nil {
		t.Fatal(err)
	}
	client := s.client().CoreV1().ConfigMaps(s.name)
	s.stuckWatch(config)
	good, err := client.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer good.Stop()
	var seen sync.WaitGroup
	const count = 200
	lag := make(chan time.Duration, count)
	seen.Go(func() {
		defer close(lag)
		for left := count; left > 0; {
			select {
			case event, ok := <-good.ResultChan():
				if !ok {
					t.Error("the good watch ended")
					return
				}
				object, isMap := event.Object.(*corev1.ConfigMap)
				if isMap && event.Type == watch.Added && object.Annotations["at"] != "" {
					at, _ := time.Parse(time.RFC3339Nano, object.Annotations["at"])
					lag <- time.Since(at)
					left--
				}
			case <-time.After(patience):
				t.Error("the good watch is stuck")
				return
			}
		}
	})
	// 20 MB, far more than any buffer on the way to the stuck one.
	for i := range count {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("w-", i), Annotations: map[string]string{"at": time.Now().Format(time.RFC3339Nano)}},
			Data: map[string]string{"a": strings.Repeat("x", 100<<10)}}
		if _, err := client.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	seen.Wait()
	worst := time.Duration(0)
	for d := range lag {
		worst = max(worst, d)
	}
	t.Logf("longest lag of the good watcher: %s", worst)
	if worst > 5*time.Second {
		t.Errorf("the good watcher lagged by %s", worst)
	}
}

// stuckWatch sends the request for a watch and reads no more than its first line.
func (s *space) stuckWatch(config *rest.Config) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	conn, err := s.node.Dial(ctx, "tcp", strings.TrimPrefix(config.Host, "https://"))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		s.Fatal(err)
	}
	tlsConfig.NextProtos = []string{"http/1.1"}
	tlsConfig.ServerName = "127.0.0.1"
	secure := tls.Client(conn, tlsConfig)
	var request bytes.Buffer
	fmt.Fprintf(&request, "GET /api/v1/namespaces/%s/configmaps?watch=1 HTTP/1.1\r\nHost: orch\r\n\r\n", s.name)
	if _, err := secure.Write(request.Bytes()); err != nil {
		s.Fatal(err)
	}
	if line, err := bufio.NewReader(secure).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		s.Fatalf("watch: %q %v", line, err)
	}
}
