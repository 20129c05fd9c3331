package api

import (
	"context"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/registry"
)

// writeContext lets the registry see who writes and tell the client warnings.
func writeContext(w http.ResponseWriter, r *http.Request) (context.Context, func(string)) {
	warn := warner(w)
	ctx := registry.WithFieldManager(r.Context(), r.Header.Get("User-Agent"))
	return registry.WithWarnings(ctx, warn), warn
}

// bodyObject decodes the object in the body.
func (s *Server) bodyObject(w http.ResponseWriter, r *http.Request, q *request, validation string, warn func(string)) (runtime.Object, error) {
	m, err := bodyMedia(r)
	if err != nil {
		return nil, err
	}
	data, err := readBody(r)
	if err != nil {
		return nil, err
	}
	var into runtime.Object
	if q.sub != nil && q.sub.New != nil {
		into = q.sub.New()
	} else {
		into = q.res.New()
	}
	return s.codec.decode(data, m, into, q.kind(), validation, warn)
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, q *request) error {
	offer := withTables
	if q.res.Evaluate != nil {
		offer = plainOnly // a review has neither metadata nor columns to show
	}
	a, err := negotiate(r, offer)
	if err != nil {
		return err
	}
	opts, err := q.createOptions()
	if err != nil {
		return err
	}
	ctx, warn := writeContext(w, r)
	body, err := s.bodyObject(w, r, q, opts.FieldValidation, warn)
	if err != nil {
		return err
	}
	obj, err := s.cfg.Registry.Create(ctx, q.res, q.namespace, body.(registry.Object), opts)
	if err != nil {
		return err
	}
	return s.answer(w, r, q, a, http.StatusCreated, obj)
}

// createSubresource performs an action: binding, eviction, token.
func (s *Server) createSubresource(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, plainOnly)
	if err != nil {
		return err
	}
	opts, err := q.createOptions()
	if err != nil {
		return err
	}
	ctx, warn := writeContext(w, r)
	body, err := s.bodyObject(w, r, q, opts.FieldValidation, warn)
	if err != nil {
		return err
	}
	if meta, ok := body.(metav1.Object); ok && meta.GetNamespace() != "" && meta.GetNamespace() != q.namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	result, err := s.cfg.Registry.Act(ctx, q.res, q.subresource, q.namespace, q.name, body, opts)
	if err != nil {
		return err
	}
	code := http.StatusCreated
	if status, ok := asStatus(result); ok {
		if status.Code == 0 {
			done := *status
			done.Code = http.StatusCreated
			result = &done
		}
	}
	return s.answer(w, r, q, a, code, result)
}

func (s *Server) update(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	opts, err := q.updateOptions()
	if err != nil {
		return err
	}
	ctx, warn := writeContext(w, r)
	body, err := s.bodyObject(w, r, q, opts.FieldValidation, warn)
	if err != nil {
		return err
	}
	if q.res.CreateOnUpdate && q.sub == nil {
		if err := s.authorizeCreate(ctx, q); err != nil {
			return err
		}
	}
	obj, created, err := s.cfg.Registry.Update(ctx, q.res, q.subresource, q.namespace, q.name, body, opts)
	if err != nil {
		return err
	}
	return s.answer(w, r, q, a, createdCode(created), obj)
}

func createdCode(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
}

func (s *Server) patch(w http.ResponseWriter, r *http.Request, q *request) error {
	contentType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	pt := types.PatchType(strings.TrimSpace(contentType))
	switch pt {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType:
	default:
		return unsupportedMedia(patchTypes...)
	}
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	opts, err := q.patchOptions(pt)
	if err != nil {
		return err
	}
	ctx, _ := writeContext(w, r)
	if pt == types.ApplyYAMLPatchType && q.sub == nil {
		if err := s.authorizeCreate(ctx, q); err != nil {
			return err
		}
	}
	obj, created, err := s.cfg.Registry.Patch(ctx, q.res, q.subresource, q.namespace, q.name, pt, body, opts)
	if err != nil {
		return err
	}
	return s.answer(w, r, q, a, createdCode(created), obj)
}

// returnsDeleted are the resources whose deletion answers with the object that
// was deleted and not with a Status.
var returnsDeleted = map[string]bool{
	"resourcequotas": true, "persistentvolumes": true, "serviceaccounts": true, "persistentvolumeclaims": true,
	"namespaces": true, "pods": true, "services": true, "podtemplates": true,
	"csidrivers.storage.k8s.io": true, "storageclasses.storage.k8s.io": true, "volumeattachments.storage.k8s.io": true,
	"csinodes.storage.k8s.io": true, "volumeattributesclasses.storage.k8s.io": true,
	"resourceclaims.resource.k8s.io": true, "resourceclaimtemplates.resource.k8s.io": true,
	"resourceslices.resource.k8s.io": true, "deviceclasses.resource.k8s.io": true,
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	opts, err := s.deleteOptions(w, r, q)
	if err != nil {
		return err
	}
	ctx, _ := writeContext(w, r)
	obj, gone, err := s.cfg.Registry.Delete(ctx, q.res, q.namespace, q.name, opts)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !gone && opts.OrphanDependents != nil && !*opts.OrphanDependents {
		code = http.StatusAccepted // the deprecated option alone keeps the right code
	}
	if gone && !returnsDeleted[q.res.GroupResource().String()] {
		return s.answer(w, r, q, a, code, &metav1.Status{
			Status: metav1.StatusSuccess,
			Details: &metav1.StatusDetails{
				Name: obj.GetName(), Group: q.res.Group, Kind: q.res.Plural, UID: obj.GetUID(),
			},
		})
	}
	return s.answer(w, r, q, a, code, obj)
}

func (s *Server) deleteCollection(w http.ResponseWriter, r *http.Request, q *request) error {
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	sel, list, err := q.listOptions()
	if err != nil {
		return err
	}
	opts, err := s.deleteOptions(w, r, q)
	if err != nil {
		return err
	}
	ctx, _ := writeContext(w, r)
	page, err := s.cfg.Registry.DeleteCollection(ctx, q.res, sel, list, opts)
	if err != nil {
		return err
	}
	return s.answerList(w, r, q, a, page)
}

// authorizeCreate refuses a PUT or an apply that would make an object for a
// user who may not create it.
func (s *Server) authorizeCreate(ctx context.Context, q *request) error {
	a := q.attributes()
	a.Verb = "create"
	refused := s.authorize(ctx, a)
	if refused == nil {
		return nil
	}
	_, err := s.cfg.Registry.Get(ctx, q.res, q.namespace, q.name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return refused
	}
	return err
}
