package api

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FuzzRequest sends any path and query with any body: each gets an answer that is
// no fault of the server's.
func FuzzRequest(f *testing.F) {
	s := New(Config{Registry: newTestRegistry(f, testTable())})
	for _, seed := range []struct{ method, target, media, body string }{
		{"GET", "/api/v1/namespaces/a/pods?labelSelector=a+in+(b,c),!d&fieldSelector=spec.nodeName%3Dx&limit=1", "", ""},
		{"GET", "/api/v1/pods?resourceVersion=0&resourceVersionMatch=NotOlderThan&continue=x", "", ""},
		{"GET", "/api/v1/namespaces/a/pods/https:b:-1/proxy/", "", ""},
		{"GET", "/api/v1/namespaces/a/services/http:b:8080/proxy/../x?y", "", ""},
		{"GET", "/api/v1/watch/namespaces/a/pods/b?timeoutSeconds=1", "", ""},
		{"POST", "/api/v1/namespaces/a/configmaps?dryRun=All&fieldValidation=Strict", contentJSON, `{"metadata":{"name":"a"},"data":{"b":"c"}}`},
		{"POST", "/api/v1/namespaces/a/configmaps", contentYAML, "metadata: {name: a}\ndata: {b: c}\n"},
		{"POST", "/api/v1/namespaces/a/configmaps", contentProtobuf, "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x00"},
		{"PATCH", "/api/v1/namespaces/a/configmaps/a", "application/json-patch+json", `[{"op":"add","path":"/data","value":{}}]`},
		{"PATCH", "/api/v1/namespaces/a/configmaps/a?fieldManager=m&force=1", "application/apply-patch+yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"},
		{"DELETE", "/api/v1/namespaces/a/configmaps/a?gracePeriodSeconds=-1", contentJSON, `{"preconditions":{"uid":"x"}}`},
	} {
		f.Add(seed.method, seed.target, seed.media, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, method, target, media string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/debug/") || strings.Contains(target, "watch") {
			return // no request, or one that lasts by design
		}
		r := httptest.NewRequest("GET", "/", bytes.NewReader(body))
		r.Method, r.URL = method, u
		r.Header.Set("Content-Type", media)
		w := recorded(s, r)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%s %s: %s", method, target, w.Body)
		}
	})
}

// FuzzListOptions reads any selectors and options.
func FuzzListOptions(f *testing.F) {
	f.Add("labelSelector=a%3Db&fieldSelector=metadata.name%3Dx&limit=5&timeoutSeconds=1")
	f.Add("labelSelector=a+notin+(b)&allowWatchBookmarks=true&sendInitialEvents=true")
	f.Fuzz(func(t *testing.T, text string) {
		u := &url.URL{Path: "/api/v1/namespaces/a/pods", RawQuery: text}
		q, err := parseRequest("GET", u)
		if err != nil {
			return
		}
		if sel, _, err := q.listOptions(); err == nil && sel.Labels != nil {
			_ = sel.Labels.String()
		}
	})
}

// FuzzDecode decodes any body, in each media type, strictly or not.
func FuzzDecode(f *testing.F) {
	reg := newTestRegistry(f, testTable())
	codec, res := newCodec(reg.Scheme()), reg.Lookup("", "v1", "pods")
	f.Add([]byte(`{"kind":"Pod","apiVersion":"v1","spec":{"containers":[{"name":"a"}]}}`))
	f.Add([]byte("kind: Pod\nspec: &a {containers: [{name: a}]}\n"))
	f.Add([]byte("k8s\x00\n\x09\n\x02v1\x12\x03Pod\x12\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []media{mediaJSON, mediaYAML, mediaProtobuf} {
			for _, validation := range []string{metav1.FieldValidationIgnore, metav1.FieldValidationStrict} {
				obj, err := codec.decode(data, m, res.New(), res.GVK(), validation, func(string) {})
				if err == nil && obj == nil {
					t.Error("neither an object nor an error")
				}
			}
		}
	})
}

// FuzzEstablishing cuts a node's answer anywhere: the header ends where it ends.
func FuzzEstablishing(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\nrest"), 7)
	f.Add([]byte("\r\r\n\r\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		if step < 1 {
			return
		}
		young := &youngConn{Conn: &canned{data: data, step: step}}
		_, err := io.Copy(io.Discard, young)
		if ended := bytes.Contains(data, []byte("\r\n\r\n")); young.established != ended && err == nil {
			t.Errorf("established is %t, a blank line came: %t", young.established, ended)
		}
	})
}

// canned is a connection that gives data in steps.
type canned struct {
	net.TCPConn // whose deadlines fail, which does not matter
	data        []byte
	step        int
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:min(c.step, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}
