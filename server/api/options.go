package api

import (
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// parameters decodes the query into an options object of meta/v1.
func (q *request) parameters(into runtime.Object) error {
	if len(q.query) == 0 {
		return nil
	}
	if err := internalscheme.ParameterCodec.DecodeParameters(q.query, metav1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

func (q *request) getOptions() (*metav1.GetOptions, error) {
	opts := &metav1.GetOptions{}
	return opts, q.parameters(opts)
}

func (q *request) createOptions() (*metav1.CreateOptions, error) {
	opts := &metav1.CreateOptions{}
	if err := q.parameters(opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("CreateOptions", validation.ValidateCreateOptions(opts))
}

func (q *request) updateOptions() (*metav1.UpdateOptions, error) {
	opts := &metav1.UpdateOptions{}
	if err := q.parameters(opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("UpdateOptions", validation.ValidateUpdateOptions(opts))
}

func (q *request) patchOptions(pt types.PatchType) (*metav1.PatchOptions, error) {
	opts := &metav1.PatchOptions{}
	if err := q.parameters(opts); err != nil {
		return nil, err
	}
	return opts, invalidOptions("PatchOptions", validation.ValidatePatchOptions(opts, pt))
}

// deleteOptions come from the body when there is one, else from the query.
func (s *Server) deleteOptions(w http.ResponseWriter, r *http.Request, q *request) (*metav1.DeleteOptions, error) {
	opts := &metav1.DeleteOptions{}
	data, err := readBody(r)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 {
		m, err := bodyMedia(r)
		if err != nil {
			return nil, err
		}
		gvk := metav1.SchemeGroupVersion.WithKind("DeleteOptions")
		if err := s.codec.check(data, m, gvk); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		obj, _, err := s.codec.metaDecoder(m).Decode(data, &gvk, opts)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if obj != opts {
			return nil, apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
		}
	} else if err := q.parameters(opts); err != nil {
		return nil, err
	}
	opts.IgnoreStoreReadErrorWithClusterBreakingPotential = nil
	return opts, invalidOptions("DeleteOptions", validation.ValidateDeleteOptions(opts))
}

// metaDecoder decodes the options kinds, which every group's version may name.
func (c *codec) metaDecoder(m media) runtime.Decoder {
	info, _ := runtime.SerializerInfoForMediaType(internalscheme.Codecs.SupportedMediaTypes(), m.contentType())
	return optionsDecoder{info.Serializer}
}

// optionsDecoder reads DeleteOptions whatever group version the client wrote.
type optionsDecoder struct{ runtime.Serializer }

func (d optionsDecoder) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, actual, err := d.Serializer.Decode(data, gvk, into)
	if err != nil || obj == into {
		return obj, actual, err
	}
	if opts, ok := obj.(*metav1.DeleteOptions); ok {
		*into.(*metav1.DeleteOptions) = *opts
		return into, actual, nil
	}
	return obj, actual, nil
}

// listOptions gives the selection and options of list, watch and deletecollection.
func (q *request) listOptions() (registry.Selection, *metav1.ListOptions, error) {
	sel := registry.Selection{Namespace: q.namespace}
	var in internalversion.ListOptions
	if err := q.parameters(&in); err != nil {
		return sel, nil, err
	}
	if q.verb == "watch" {
		in.Watch = true
	}
	if errs := internalvalidation.ValidateListOptions(&in, true); len(errs) > 0 {
		return sel, nil, invalidOptions("ListOptions", errs)
	}
	sel.Labels, sel.Fields = in.LabelSelector, in.FieldSelector
	if q.name != "" {
		if in.FieldSelector == nil || in.FieldSelector.Empty() {
			sel.Fields = fields.OneTermEqualSelector("metadata.name", q.name)
		} else if name, ok := in.FieldSelector.RequiresExactMatch("metadata.name"); !ok || name != q.name {
			return sel, nil, apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
	}
	return sel, &metav1.ListOptions{
		LabelSelector: q.query.Get("labelSelector"), FieldSelector: q.query.Get("fieldSelector"),
		Watch: in.Watch, AllowWatchBookmarks: in.AllowWatchBookmarks,
		ResourceVersion: in.ResourceVersion, ResourceVersionMatch: in.ResourceVersionMatch,
		TimeoutSeconds: in.TimeoutSeconds, Limit: in.Limit, Continue: in.Continue,
		SendInitialEvents: in.SendInitialEvents,
	}, nil
}

// tableOptions are read for Table answers alone.
func (q *request) tableOptions(a accept) (*metav1.TableOptions, error) {
	opts := &metav1.TableOptions{}
	if a.as.Kind != "Table" {
		return opts, nil
	}
	if err := q.parameters(opts); err != nil {
		return nil, err
	}
	if errs := validation.ValidateTableOptions(opts); len(errs) > 0 {
		return nil, apierrors.NewBadRequest("Unable to convert to Table as requested: " + errs[0].Error())
	}
	return opts, nil
}
