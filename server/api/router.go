package api

import (
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// allVerbs are those of a stored resource whose entry names none.
var allVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func verbsOf(res *registry.Resource) []string {
	switch {
	case res.Verbs != nil:
		return res.Verbs
	case res.Evaluate != nil:
		return []string{"create"}
	}
	return allVerbs
}

// route hands the request to what its path names.
func (s *Server) route(w http.ResponseWriter, r *http.Request, q *request) {
	if !q.isResource {
		s.routePath(w, r, q)
		return
	}
	q.res = s.cfg.Registry.Lookup(q.group, q.version, q.resource)
	if q.res == nil || (q.prefix == "api") != (q.group == "") || !q.exists() {
		s.notFound(w, r)
		return
	}
	if q.res.Deprecated != "" {
		warner(w)(q.res.Deprecated)
	}
	if q.subresource != "" {
		s.routeSubresource(w, r, q)
		return
	}
	verb := q.verb
	if q.watchPrefix {
		verb = "watch"
		if r.Method != http.MethodGet {
			s.fail(w, r, methodNotAllowed())
			return
		}
	}
	if !slices.Contains(verbsOf(q.res), verb) || !q.allows(verb) {
		s.fail(w, r, methodNotAllowed())
		return
	}
	if err := s.serveResource(w, r, q, verb); err != nil {
		s.fail(w, r, err)
	}
}

// exists tells whether the path has the form of the resource's scope: objects
// of namespaced resources are reached through their namespace alone.
func (q *request) exists() bool {
	if !q.res.Namespaced {
		return q.namespace == "" || q.res.GroupResource() == namespaces
	}
	return q.namespace != "" || q.name == "" || q.verb == "list" || q.verb == "watch"
}

// allows tells whether verb fits the path: a create names no object and has
// its namespace, an update names one. What deletes many objects has its
// namespace, too: a client that forgot to name one means no other's.
func (q *request) allows(verb string) bool {
	switch verb {
	case "create":
		return q.name == "" && (q.namespace != "" || !q.res.Namespaced)
	case "deletecollection":
		return q.namespace != "" || !q.res.Namespaced
	case "update", "patch":
		return q.name != ""
	}
	return true
}

func (s *Server) serveResource(w http.ResponseWriter, r *http.Request, q *request, verb string) error {
	if q.res.GroupResource() == namespaces {
		q.namespace = "" // the request's namespace is the object's own name
	}
	switch verb {
	case "get":
		return s.get(w, r, q)
	case "list":
		return s.list(w, r, q)
	case "watch":
		return s.watch(w, r, q)
	case "create":
		return s.create(w, r, q)
	case "update":
		return s.update(w, r, q)
	case "patch":
		return s.patch(w, r, q)
	case "delete":
		return s.delete(w, r, q)
	case "deletecollection":
		return s.deleteCollection(w, r, q)
	}
	return methodNotAllowed()
}

func (s *Server) routeSubresource(w http.ResponseWriter, r *http.Request, q *request) {
	if q.res.GroupResource() == namespaces {
		q.namespace = ""
	}
	for _, sub := range q.res.Subresources {
		if sub.Name == q.subresource {
			q.sub = sub
		}
	}
	if q.sub == nil {
		s.notFound(w, r)
		return
	}
	if err := s.serveSubresource(w, r, q); err != nil {
		s.fail(w, r, err)
	}
}

// serveSubresource calls the handler of what kind of subresource it is.
func (s *Server) serveSubresource(w http.ResponseWriter, r *http.Request, q *request) error {
	if len(q.sub.Connect) > 0 {
		return s.connect(w, r, q)
	}
	if q.rest != "" && q.rest != "/" {
		s.notFound(w, r)
		return nil
	}
	viewed := q.sub.Create == nil && (q.sub.Update != nil || q.sub.Project != nil)
	switch {
	case q.verb == "get" && viewed:
		return s.getSubresource(w, r, q)
	case q.verb == "update" && viewed:
		return s.update(w, r, q)
	case q.verb == "patch" && viewed:
		return s.patch(w, r, q)
	case q.verb == "create" && q.sub.Create != nil:
		return s.createSubresource(w, r, q)
	}
	return methodNotAllowed()
}

// routePath serves the paths that are not objects.
func (s *Server) routePath(w http.ResponseWriter, r *http.Request, q *request) {
	path := strings.TrimSuffix(q.path, "/")
	if handler := s.cfg.Paths[path]; handler != nil {
		handler.ServeHTTP(w, r)
		return
	}
	switch {
	case healthPath(path):
		s.health(w, r, path)
	case path == "/metrics":
		s.metrics.handler.ServeHTTP(w, r)
	case path == "/debug/pprof" || strings.HasPrefix(path, "/debug/pprof/"):
		profile(w, r)
	case q.verb != "get" && q.verb != "head":
		s.routeOther(w, r, path)
	case path == "":
		s.writeRaw(w, r, map[string][]string{"paths": s.paths()})
	case path == "/version":
		s.writeRaw(w, r, s.cfg.Version)
	case path == "/openapi/v2" || path == "/openapi/v3" || strings.HasPrefix(path, "/openapi/v3/"):
		s.openapi.serve(s, w, r, path)
	case path == "/api" || path == "/apis" || strings.HasPrefix(path, "/api/") || strings.HasPrefix(path, "/apis/"):
		s.discover(w, r, path)
	default:
		notFound(w)
	}
}

func (s *Server) routeOther(w http.ResponseWriter, r *http.Request, path string) {
	for _, known := range []string{"", "/version", "/api", "/apis", "/openapi/v2", "/openapi/v3"} {
		if path == known {
			s.fail(w, r, methodNotAllowed())
			return
		}
	}
	notFound(w)
}

// notFound answers a path that nothing serves: within the API's groups by a
// Status, which unlike that of a missing object names nothing.
func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] != "api" && (len(parts) < 3 || parts[0] != "apis" || s.discovery.group(parts[1]) == nil) {
		notFound(w)
		return
	}
	s.fail(w, r, &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
	}})
}

// notFound is how upstream answers all other paths that nothing serves.
func notFound(w http.ResponseWriter) {
	http.Error(w, "404 page not found", http.StatusNotFound)
}

// methodNotAllowed is the 405 of a path that exists for other verbs.
func methodNotAllowed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
		Message: "the server does not allow this method on the requested resource", Details: &metav1.StatusDetails{},
	}}
}
