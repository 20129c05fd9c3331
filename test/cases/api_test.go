package cases

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// steps runs what a case's file asks for against a server of its own.
type steps struct {
	t      *testing.T
	node   *cluster.Node
	ctx    context.Context
	client *http.Client
	server string
}

func newSteps(t *testing.T) *steps {
	t.Helper()
	node := cluster.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	config, err := node.Config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := httpClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return &steps{t: t, node: node, ctx: ctx, client: client, server: strings.TrimSuffix(config.Host, "/")}
}

// kubectl runs it, or ends the test.
func (s *steps) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.node.Kubectl(s.ctx, args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// file is where a case is kept.
func file(name string) string { return "testdata/" + name }

// read gives a case as it is kept.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(file(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// feed gives kubectl a document on its standard input.
func (s *steps) feed(document string, args ...string) (string, error) {
	return s.node.KubectlInput(s.ctx, strings.NewReader(document), args...)
}

// eventually asks kubectl again, whenever something has happened, until it says want.
func (s *steps) eventually(want string, args ...string) {
	s.t.Helper()
	var out string
	for s.ctx.Err() == nil {
		if out, _ = s.node.Kubectl(s.ctx, args...); strings.TrimSpace(out) == want {
			return
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-s.ctx.Done():
		}
	}
	s.t.Fatalf("kubectl %s: %q, want %q", strings.Join(args, " "), out, want)
}

// answer is what the server said.
type answer struct {
	code   int
	body   string
	header http.Header
}

// call makes a request as administrator.
func (s *steps) call(method, path, contentType, body string) answer {
	s.t.Helper()
	return call(s.ctx, s.t, s.client, method, s.server+path, contentType, body)
}

// TestApi05: a watch from a revision that is gone opens, and says so in it.
func TestApi05(t *testing.T) {
	s := newSteps(t)
	const path = "/api/v1/namespaces/default/configmaps"
	// The history of states that are no more is bounded by bytes.
	const big = "/api/v1/namespaces/default/configmaps/big?fieldManager=x&force=true"
	for i := range 24 {
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"n":"%d","x":%q}}`, i, strings.Repeat("x", 900<<10))
		if a := s.call("PATCH", big, "application/apply-patch+yaml", body); a.code >= 300 {
			t.Fatalf("%d %s", a.code, a.body)
		}
	}
	for s.ctx.Err() == nil { // until revision 1 is not in the history any more
		a := s.call("GET", path+"?watch=1&resourceVersion=1&timeoutSeconds=1", "", "")
		if a.code != http.StatusOK {
			t.Fatalf("got %d %s", a.code, a.body)
		}
		if strings.Contains(a.body, `"ERROR"`) {
			var event struct {
				Type   string
				Object struct {
					Kind, Reason string
					Code         int
				}
			}
			if err := json.Unmarshal([]byte(a.body), &event); err != nil || event.Type != "ERROR" || event.Object.Kind != "Status" ||
				event.Object.Reason != "Expired" || event.Object.Code != http.StatusGone {
				t.Errorf("got %s (%v)", a.body, err)
			}
			return
		}
	}
	t.Error("revision 1 is still in the history")
}

// TestApi06: nothing is deleted in all namespaces at once, of any kind.
func TestApi06(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "-f", file("api-06-deletecollection-all-namespaces.yaml"))
	for _, query := range []string{"?labelSelector=q%3D1", ""} {
		a := s.call("DELETE", "/api/v1/configmaps"+query, "", "")
		if a.code != http.StatusMethodNotAllowed || !strings.Contains(a.body, "the server does not allow this method on the requested resource") {
			t.Errorf("%q: %d %s", query, a.code, a.body)
		}
	}
	kinds := strings.Fields(s.kubectl("api-resources", "--namespaced", "--verbs=deletecollection", "-o", "name"))
	if len(kinds) < 20 {
		t.Fatalf("only %d kinds: %v", len(kinds), kinds)
	}
	for _, kind := range kinds {
		plural, group, _ := strings.Cut(kind, ".")
		base := "/api/v1/"
		if group != "" {
			base = "/apis/" + group + "/" + preferred(s, group) + "/"
		}
		if a := s.call("DELETE", base+plural, "", ""); a.code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d %s", kind, a.code, a.body)
		}
	}
	for _, ns := range []string{"dca", "dcb"} {
		s.kubectl("-n", ns, "get", "configmap", "x")
		if a := s.call("DELETE", "/api/v1/namespaces/"+ns+"/configmaps?labelSelector=q%3D1", "", ""); a.code != http.StatusOK {
			t.Errorf("in a namespace: %d %s", a.code, a.body)
		}
	}
}

// preferred is the version of a group that clients should use.
func preferred(s *steps, group string) string {
	s.t.Helper()
	var doc struct{ PreferredVersion struct{ Version string } }
	a := s.call("GET", "/apis/"+group, "", "")
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		s.t.Fatalf("%s: %v", a.body, err)
	}
	return doc.PreferredVersion.Version
}

// TestApi16: a pod's address and its addresses are kept in step.
func TestApi16(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "-f", file("api-16-podip-without-podips.yaml"))
	s.kubectl("patch", "pod", "ip", "--subresource=status", "--type=merge", "-p", `{"status":{"podIP":"10.1.2.3"}}`)
	if got := s.kubectl("get", "pod", "ip", "-o", "jsonpath={.status.podIPs}"); got != `[{"ip":"10.1.2.3"}]` {
		t.Errorf("podIPs %s", got)
	}
	// The address counts where both are there, so other addresses do not stay beside it.
	s.kubectl("patch", "pod", "ip", "--subresource=status", "--type=merge", "-p", `{"status":{"podIP":null,"podIPs":[{"ip":"10.9.9.9"}]}}`)
	if got := s.kubectl("get", "pod", "ip", "-o", "jsonpath={.status.podIP} {.status.podIPs}"); got != `10.9.9.9 [{"ip":"10.9.9.9"}]` {
		t.Errorf("got %s", got)
	}
	if a := s.call("GET", "/api/v1/pods?fieldSelector=status.podIPs%3D10.9.9.9", "", ""); a.code != http.StatusOK {
		t.Errorf("field selector: %d %s", a.code, a.body)
	}
}

// TestApi20: what is applied may be a saved object that was deleted since.
func TestApi20(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "--server-side", "-f", file("api-20-ssa-create-with-resourceversion.yaml"))
	const apply = "application/apply-patch+yaml"
	path := func(name string) string { return "/api/v1/namespaces/default/configmaps/" + name + "?fieldManager=x" }
	for _, c := range []struct {
		name, body string
		code       int
	}{
		{"new", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new","resourceVersion":"1"}}`, http.StatusCreated},
		{"new", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new","resourceVersion":"1"}}`, http.StatusConflict},
		{"new", `{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"b"}}`, http.StatusOK}, // named by the URL
		{"nameless", `{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"b"}}`, http.StatusBadRequest},
	} {
		if a := s.call("PATCH", path(c.name), apply, c.body); a.code != c.code {
			t.Errorf("%s: %d, want %d: %s", c.body, a.code, c.code, a.body)
		}
	}
}

// TestApi21: events.k8s.io/v1 asks more of an event than v1 does.
func TestApi21(t *testing.T) {
	s := newSteps(t)
	out, err := s.feed(read(t, "api-21-events-v1-validation.yaml"), "create", "-f", "-")
	if err == nil {
		t.Errorf("created: %s", out)
	}
	out += fmt.Sprint(err)
	for _, want := range []string{"eventTime: Required value", "has invalid value: Odd"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	const path = "/apis/events.k8s.io/v1/namespaces/default/events"
	event := func(more string) string {
		return `{"metadata":{"name":"e"},"eventTime":"2030-01-01T00:00:00.000000Z","reportingController":"a.b/c","reportingInstance":"i",` +
			`"action":"A","reason":"R","type":"Normal","note":"n","regarding":{"kind":"Pod","namespace":"default","name":"x"}` + more + `}`
	}
	for more, want := range map[string]string{
		`,"series":{"count":1,"lastObservedTime":"2030-01-01T00:00:00.000000Z"}`: "should be at least 2",
		`,"deprecatedCount":3`: "needs to be unset",
	} {
		if a := s.call("POST", path, "application/json", event(more)); a.code != http.StatusUnprocessableEntity || !strings.Contains(a.body, want) {
			t.Errorf("%s: %d %s", more, a.code, a.body)
		}
	}
	if a := s.call("POST", path, "application/json", event("")); a.code != http.StatusCreated {
		t.Fatalf("%d %s", a.code, a.body)
	}
	a := s.call("PATCH", path+"/e", "application/merge-patch+json", `{"note":"other"}`)
	if a.code != http.StatusUnprocessableEntity || !strings.Contains(a.body, "field is immutable") {
		t.Errorf("another note: %d %s", a.code, a.body)
	}
}

// TestApi23: the rules that pods have had since 1.37.
func TestApi23(t *testing.T) {
	s := newSteps(t)
	out := s.kubectl("create", "--dry-run=server", "-o", "jsonpath={.spec.terminationGracePeriodSeconds} {.spec.containers[0].lifecycle.stopSignal}",
		"-f", file("api-23-v137-pod-rules.yaml"))
	if out != "1 SIGUSR1" {
		t.Errorf("got %s", out)
	}
}
