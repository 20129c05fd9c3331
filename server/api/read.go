package api

import (
	"context"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/registry"
)

var namespaces = schema.GroupResource{Resource: "namespaces"}

func (s *Server) get(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	opts, err := q.getOptions()
	if err != nil {
		return err
	}
	obj, err := s.cfg.Registry.Get(r.Context(), q.res, q.namespace, q.name, opts)
	if err != nil {
		return err
	}
	return s.answer(w, r, q, a, http.StatusOK, obj)
}

// getSubresource reads a view (the parent itself) or a projection of the parent.
func (s *Server) getSubresource(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	opts, err := q.getOptions()
	if err != nil {
		return err
	}
	obj, err := s.cfg.Registry.Get(r.Context(), q.res, q.namespace, q.name, opts)
	if err != nil {
		return err
	}
	if q.sub.Project == nil {
		return s.answer(w, r, q, a, http.StatusOK, obj)
	}
	projected, err := q.sub.Project.Get(obj)
	if err != nil {
		return err
	}
	return s.answer(w, r, q, a, http.StatusOK, projected)
}

// kind is what the request's objects are: the subresource's kind or the parent's.
func (q *request) kind() schema.GroupVersionKind {
	if q.sub != nil && !q.sub.Kind.Empty() {
		return q.sub.Kind
	}
	return q.res.GVK()
}

// answer writes an object, converted to what the client asked for.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, q *request, a accept, code int, obj runtime.Object) error {
	gvk := q.kind()
	switch a.as.Kind {
	case "Table":
		opts, err := q.tableOptions(a)
		if err != nil {
			return err
		}
		if object, ok := obj.(registry.Object); ok {
			table, err := newTable(q.rows(), a.as, opts, time.Now(), object)
			if err != nil {
				return err
			}
			table.ResourceVersion = object.GetResourceVersion()
			obj, gvk = table, a.as
		}
	case "PartialObjectMetadata":
		if object, ok := obj.(registry.Object); ok {
			obj, gvk = partial(object, a.as), a.as
		}
	case "PartialObjectMetadataList":
		return notAcceptableMessage("you requested PartialObjectMetadataList, but the requested object is not a list (" + typeName(gvk.Group, obj) + ")")
	}
	if _, isStatus := asStatus(obj); isStatus {
		gvk = statusKind
	}
	s.respond(w, r, a, code, obj, gvk)
	return nil
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	sel, opts, err := q.listOptions()
	if err != nil {
		return err
	}
	ctx := r.Context()
	if opts.TimeoutSeconds != nil && *opts.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*opts.TimeoutSeconds)*time.Second)
		defer cancel()
	}
	result, err := s.cfg.Registry.List(ctx, q.res, sel, opts)
	if err != nil {
		return err
	}
	return s.answerList(w, r, q, a, result)
}
