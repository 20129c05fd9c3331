package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"orch/server/registry/document"
)

// Limits of a patch, as upstream's.
const (
	maxPatchBytes      = 3 << 20
	maxPatchOperations = 10000
)

// patcher makes the wanted object from a patch and the current object. kind is
// that of the body: the resource's own, or a projection's.
type patcher struct {
	r          *Registry
	e          *entry
	sub        string
	kind       schema.GroupVersionKind
	make       func() runtime.Object
	patchType  types.PatchType
	body       []byte
	config     []byte // body as JSON
	yaml       bool   // which it was not
	validation string
	manager    string
	force      bool
}

// Patch applies any of the four patch types (body as JSON; apply patches as JSON or YAML).
func (r *Registry) Patch(ctx context.Context, res *Resource, subresource, ns, name string, pt types.PatchType, body []byte, opts *metav1.PatchOptions) (obj runtime.Object, created bool, err error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.PatchOptions{}
	}
	if err := checkPatch(pt, body, opts); err != nil {
		return nil, false, err
	}
	p := &patcher{r: r, e: e, sub: subresource, kind: e.gvk, make: func() runtime.Object { return e.New() },
		patchType: pt, body: body, config: body, validation: opts.FieldValidation,
		manager: fieldManager(ctx, opts.FieldManager), force: opts.Force != nil && *opts.Force}
	if p.validation == "" {
		p.validation = metav1.FieldValidationWarn
	}
	rw := &rewrite{e: e, subresource: subresource, ns: ns, name: name, manager: p.manager,
		dryRun: isDryRun(opts.DryRun), unconditional: true, applied: pt == types.ApplyPatchType}
	if sub := e.views[subresource]; sub != nil && sub.Project != nil {
		p.kind, p.make = sub.Kind, sub.New
		if err := p.check(); err != nil {
			return nil, false, err
		}
		return r.rewriteProjection(ctx, rw, sub, func(view runtime.Object) (runtime.Object, error) { return p.patch(ctx, view) })
	}
	if err := p.check(); err != nil {
		return nil, false, err
	}
	rw.managed = rw.applied
	rw.mayCreate = rw.applied && subresource == ""
	rw.next = func(ctx context.Context, current Object) (Object, error) { return p.next(ctx, current, ns, name) }
	return r.result(r.rewrite(ctx, rw))(e)
}

// checkPatch refuses what cannot be a patch, whatever the object.
func checkPatch(pt types.PatchType, body []byte, opts *metav1.PatchOptions) error {
	switch pt {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyPatchType:
	default:
		return unsupportedPatch()
	}
	if len(body) > maxPatchBytes {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxPatchBytes))
	}
	if errs := metavalidation.ValidatePatchOptions(opts, pt); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", errs)
	}
	return nil
}

// check refuses a patch for its shape, before anything is made of it. An apply
// patch is turned into JSON here.
func (p *patcher) check() error {
	if p.patchType == types.ApplyPatchType && !json.Valid(p.body) {
		config, err := document.FromYAML(p.body)
		if err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("error encoding patch: %v", err))
		}
		p.config, p.yaml = config, true
	}
	if err := document.CheckShape(p.config); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if p.patchType == types.JSONPatchType {
		return nil // what its operations make is looked at
	}
	if err := document.CheckQuantities(p.config, reflect.TypeOf(p.make())); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	return nil
}

func unsupportedPatch() error {
	accepted := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)}
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType,
		Reason:  metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: " + strings.Join(accepted, ", ")}}
}

// next gives the wanted object for rewrite.
func (p *patcher) next(ctx context.Context, current Object, ns, name string) (Object, error) {
	var live runtime.Object = current
	if current == nil {
		empty := p.e.New()
		p.e.setKind(empty)
		live = empty
	}
	out, err := p.patch(ctx, live)
	if err != nil {
		return nil, err
	}
	obj := out.(Object)
	if err := p.e.settleNamespace(obj, ns); err != nil {
		return nil, err
	}
	return obj, checkName(obj, ns, name)
}

// patch gives a private object; current is shared.
func (p *patcher) patch(ctx context.Context, current runtime.Object) (runtime.Object, error) {
	switch p.patchType {
	case types.JSONPatchType, types.MergePatchType:
		return p.patchJSON(ctx, current)
	case types.StrategicMergePatchType:
		return p.patchStrategic(ctx, current)
	}
	return p.apply(ctx, current)
}

func (p *patcher) strict() bool { return p.validation != metav1.FieldValidationIgnore }

func (p *patcher) patchJSON(ctx context.Context, current runtime.Object) (runtime.Object, error) {
	before, err := json.Marshal(current)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var after []byte
	var odd []error
	if p.patchType == types.JSONPatchType {
		after, odd, err = p.applyOperations(before)
	} else {
		after, odd, err = p.applyMerge(before)
	}
	if err != nil {
		return nil, err
	}
	obj := p.make()
	if p.strict() {
		strict, failed := kjson.UnmarshalStrict(after, obj)
		odd, err = append(odd, strict...), failed
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(after, obj)
	}
	if err == nil {
		err = p.sameKind(obj.GetObjectKind().GroupVersionKind())
	}
	if err != nil {
		return nil, invalidPatch(string(after), err)
	}
	return obj, p.report(ctx, string(after), odd)
}

// sameKind refuses a patch that would make another kind of its object. Another
// version of the same kind is left alone.
func (p *patcher) sameKind(made schema.GroupVersionKind) error {
	switch {
	case made.Kind == "" || made.Version == "" || made == p.kind:
		return nil
	case !p.r.scheme.Recognizes(made):
		return runtime.NewNotRegisteredErrForKind(legacyScheme, made)
	case made.GroupKind() != p.kind.GroupKind():
		return fmt.Errorf("converting (%s.%s) to (%s.%s): unknown conversion", made.Version, made.Kind, InternalPackage(p.kind.Group), p.kind.Kind)
	}
	return nil
}

// legacyScheme is what upstream's scheme of all kinds calls itself in messages.
const legacyScheme = "pkg/runtime/scheme.go:111"

// InternalPackage is the Go package of upstream's internal types of a group,
// which its messages name.
func InternalPackage(group string) string {
	if group == "" {
		return "core"
	}
	name, _, _ := strings.Cut(group, ".")
	return name
}

type patchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

func (p *patcher) applyOperations(before []byte) (after []byte, odd []error, err error) {
	if p.strict() {
		var operations []patchOperation
		if odd, err = kjson.UnmarshalStrict(p.body, &operations); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for i, e := range odd {
			odd[i] = fmt.Errorf("json patch %v", e)
		}
	}
	operations, err := jsonpatch.DecodePatch(p.body)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(operations) > maxPatchOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(
			fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(operations)))
	}
	if after, err = document.Apply(before, operations); err != nil {
		return nil, nil, unprocessable(err)
	}
	if err := document.CheckQuantities(after, reflect.TypeOf(p.make())); err != nil {
		return nil, nil, invalidPatch(string(after), err)
	}
	return after, odd, nil
}

func (p *patcher) applyMerge(before []byte) (after []byte, odd []error, err error) {
	if p.strict() {
		if odd, err = kjson.UnmarshalStrict(p.body, &map[string]any{}); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	after, err = document.Merge(before, p.body)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return after, odd, nil
}

// report turns unknown and repeated fields into an error or into warnings.
func (p *patcher) report(ctx context.Context, shown string, odd []error) error {
	if len(odd) == 0 {
		return nil
	}
	if p.validation == metav1.FieldValidationStrict {
		return invalidPatch(shown, runtime.NewStrictDecodingError(odd))
	}
	for _, e := range odd {
		AddWarning(ctx, e.Error())
	}
	return nil
}

func invalidPatch(shown string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), excerpt(shown), err.Error())})
}

// maxExcerpt is how much of what a client sent is shown to it again.
const maxExcerpt = 16 << 10

func excerpt(text string) string {
	if len(text) <= maxExcerpt {
		return text
	}
	return strings.ToValidUTF8(text[:maxExcerpt], "") + fmt.Sprintf("... (%d bytes)", len(text))
}

func unprocessable(err error) error {
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}

// plainFailure is how upstream shows an error without a status of its own.
func plainFailure(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}}
}
