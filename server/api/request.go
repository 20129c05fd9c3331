package api

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/auth"
	"orch/server/registry"
)

// request is what the path, method and query of an HTTP request ask for. The
// rules are those of upstream's RequestInfo.
type request struct {
	verb       string // get list watch create update patch delete deletecollection; else the method in lower case
	path       string
	isResource bool
	prefix     string // "api" or "apis"
	group      string
	version    string
	namespace  string
	resource   string
	subresource,
	name string
	rest         string // what follows the subresource, for proxies: "" or "/…"
	watchPrefix  bool   // the deprecated /watch/ form
	labelSel     string // as written, for the authorizer
	fieldSel     string
	query        url.Values
	user         *auth.User
	impersonator string // who acts as user, "" for nobody
	res          *registry.Resource
	sub          *registry.Subresource
	seat         seat
	held         int64 // bytes, counted by hold
}

var errBadPath = errors.New("unable to determine kind and namespace from url")

// parseRequest reads what r asks for. On errors the result is still usable as
// a non-resource request.
func parseRequest(method string, u *url.URL) (*request, error) {
	q := &request{verb: strings.ToLower(method), path: u.Path}
	if u.RawQuery != "" {
		q.query = u.Query()
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(parts) < 3 || parts[0] != "api" && parts[0] != "apis" {
		return q, nil
	}
	q.prefix, parts = parts[0], parts[1:]
	if q.prefix == "apis" {
		if len(parts) < 3 {
			return q, nil
		}
		q.group, parts = parts[0], parts[1:]
	}
	q.isResource = true
	q.version, parts = parts[0], parts[1:]
	q.verb = methodVerb(method)
	if parts[0] == "watch" || parts[0] == "proxy" {
		if len(parts) < 2 {
			return q, errBadPath
		}
		q.verb, q.watchPrefix, parts = parts[0], parts[0] == "watch", parts[1:]
	}
	if parts[0] == "namespaces" && len(parts) > 1 {
		q.namespace = parts[1]
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}
	q.take(parts)
	q.refine()
	return q, nil
}

// take reads resource/name/subresource/rest….
func (q *request) take(parts []string) {
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	if len(parts) > 2 && q.verb != "watch" && q.verb != "proxy" {
		q.subresource = parts[2]
		if len(parts) > 3 {
			q.rest = "/" + strings.Join(parts[3:], "/")
		}
		if strings.HasSuffix(q.path, "/") {
			q.rest += "/"
		}
	}
}

// refine turns nameless gets into lists and watches, and takes a name from a
// field selector that allows only one.
func (q *request) refine() {
	if q.name == "" && q.verb == "get" {
		q.verb = "list"
		if watchWanted(q.query) {
			q.verb = "watch"
		}
		if sel := q.query.Get("fieldSelector"); sel != "" {
			if parsed, err := fields.ParseSelector(sel); err == nil {
				if name, ok := parsed.RequiresExactMatch("metadata.name"); ok && len(content.IsPathSegmentName(name)) == 0 {
					q.name = name
				}
			}
		}
	}
	if q.name == "" && q.verb == "delete" {
		q.verb = "deletecollection"
	}
	if !q.watchPrefix && (q.verb == "list" || q.verb == "watch" || q.verb == "deletecollection") {
		q.labelSel, q.fieldSel = q.query.Get("labelSelector"), q.query.Get("fieldSelector")
	}
}

// watchWanted reads ?watch the way upstream converts strings to bool: anything
// present but "false" and "0" is true.
func watchWanted(query url.Values) bool {
	values, ok := query["watch"]
	if !ok || len(values) == 0 {
		return false
	}
	switch strings.ToLower(values[0]) {
	case "false", "0":
		return false
	}
	return true
}

func methodVerb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return ""
}

// attributes are what the authorizer is asked.
func (q *request) attributes() *auth.Attributes {
	return &auth.Attributes{
		User: q.user, Verb: q.verb,
		Group: q.group, Version: q.version, Resource: q.resource, Subresource: q.subresource,
		Namespace: q.namespace, Name: q.name, Path: q.path, ResourceRequest: q.isResource,
		LabelSelector: q.labelSel, FieldSelector: q.fieldSel,
	}
}

// longRunning requests are streams: they have no deadline and do not count
// against the limits of requests in flight.
func (q *request) longRunning() bool {
	if q.verb == "watch" || q.verb == "proxy" {
		return true
	}
	switch q.subresource {
	case "attach", "exec", "proxy", "log", "portforward":
		return true
	}
	return !q.isResource && strings.HasPrefix(q.path, "/debug/pprof/")
}

// writes tells whether the request may change something.
func (q *request) writes() bool {
	switch q.verb {
	case "get", "list", "watch", "head", "options", "trace":
		return false
	}
	return true
}
