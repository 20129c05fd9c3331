package api

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestParseRequest(t *testing.T) {
	for _, c := range []struct{ method, target, want string }{
		{"GET", "/", "get path"},
		{"GET", "/api", "get path"},
		{"GET", "/api/v1", "get path"},
		{"GET", "/apis/apps/v1", "get path"},
		{"GET", "/healthz", "get path"},
		{"POST", "/healthz", "post path"},
		{"GET", "/api/v1/pods", "list /v1 pods"},
		{"HEAD", "/api/v1/pods", "list /v1 pods"},
		{"GET", "/api/v1/pods?watch=true", "watch /v1 pods"},
		{"GET", "/api/v1/pods?watch=0", "list /v1 pods"},
		{"GET", "/api/v1/pods?watch=FALSE", "list /v1 pods"},
		{"GET", "/api/v1/pods?watch", "watch /v1 pods"},
		{"GET", "/api/v1/namespaces/a/pods/b", "get /v1 a pods b"},
		{"DELETE", "/api/v1/namespaces/a/pods", "deletecollection /v1 a pods"},
		{"DELETE", "/api/v1/namespaces/a/pods/b", "delete /v1 a pods b"},
		{"PUT", "/api/v1/namespaces/a/pods/b/status", "update /v1 a pods b /status"},
		{"GET", "/api/v1/namespaces/a/pods/b/proxy/x/y/", "get /v1 a pods b /proxy rest=/x/y/"},
		{"GET", "/api/v1/namespaces", "list /v1 namespaces"},
		{"GET", "/api/v1/namespaces/a", "get /v1 a namespaces a"},
		{"PUT", "/api/v1/namespaces/a/finalize", "update /v1 a namespaces a /finalize"},
		{"GET", "/api/v1/namespaces/a/status", "get /v1 a namespaces a /status"},
		{"GET", "/api/v1/watch/pods", "watch /v1 pods"},
		{"GET", "/api/v1/watch/namespaces/a/pods/b", "watch /v1 a pods b"},
		{"GET", "/api/v1/proxy/namespaces/a/pods/b/c", "proxy /v1 a pods b"},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "patch apps/v1 a deployments b /scale"},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list /v1 pods x"},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name%3D..", "list /v1 pods"},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name!%3Dx", "list /v1 pods"},
		{"OPTIONS", "/api/v1/namespaces/a/pods/b", " /v1 a pods b"},
		{"GET", "/api/v1/watch", "error"},
	} {
		u, err := url.ParseRequestURI(c.target)
		if err != nil {
			t.Fatal(err)
		}
		q, err := parseRequest(c.method, u)
		if got := describe(q, err); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.method, c.target, got, c.want)
		}
	}
}

func describe(q *request, err error) string {
	if err != nil {
		return "error"
	}
	if !q.isResource {
		return q.verb + " path"
	}
	text := []string{q.verb, q.group + "/" + q.version}
	for _, part := range []string{q.namespace, q.resource, q.name} {
		if part != "" {
			text = append(text, part)
		}
	}
	if q.subresource != "" {
		text = append(text, "/"+q.subresource)
	}
	if q.rest != "" {
		text = append(text, "rest="+q.rest)
	}
	return strings.Join(text, " ")
}

func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{"/api/v1/namespaces/a/pods/b/proxy/c?x=y", "/apis/apps/v1/watch/deployments", "//api//v1//", "/api/v1/namespaces//"} {
		f.Add("GET", seed)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.Parse(target)
		if err != nil {
			return
		}
		q, err := parseRequest(method, u)
		if q == nil {
			t.Fatal("no request")
		}
		if err == nil && q.isResource && strings.Contains(q.name, "/") && !strings.Contains(u.RawQuery, "fieldSelector") {
			t.Fatalf("name %q holds a separator", q.name)
		}
		q.attributes()
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add("application/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5")
	f.Add("application/vnd.kubernetes.protobuf;stream=watch, */*;q=0.1")
	f.Fuzz(func(t *testing.T, header string) {
		r := &http.Request{URL: &url.URL{}, Header: http.Header{"Accept": {header}}}
		if a, err := negotiate(r, withTables); err == nil && a.media == mediaProtobuf && a.as.Kind == "Table" {
			t.Fatalf("%q: a table cannot be protobuf", header)
		}
	})
}
