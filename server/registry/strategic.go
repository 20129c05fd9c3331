package registry

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"
)

func (p *patcher) patchStrategic(ctx context.Context, current runtime.Object) (runtime.Object, error) {
	patch, odd, err := p.parseStrategic()
	if err != nil {
		return nil, err
	}
	if len(odd) == 0 {
		if obj := p.patchParts(current, patch); obj != nil {
			return obj, nil
		}
		if patch, odd, err = p.parseStrategic(); err != nil { // merging may have changed it
			return nil, err
		}
	}
	shown := func() string { return fmt.Sprintf("%+v", patch) }
	obj := p.make()
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if mergeCost(original, patch) > maxMergeCost {
		return nil, errTooLong
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(original, patch, obj)
	if err != nil {
		return nil, strategicFailure(err)
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, obj, p.strict())
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		odd, err = append(odd, strict.Errors()...), nil
	}
	if err != nil {
		return nil, invalidPatch(shown(), err)
	}
	if len(odd) == 0 {
		return obj, nil
	}
	return obj, p.report(ctx, shown(), odd)
}

// parseStrategic gives the patch, and what is odd about it.
func (p *patcher) parseStrategic() (patch map[string]any, odd []error, err error) {
	if p.strict() {
		odd, err = kjson.UnmarshalStrict(p.body, &patch)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.body, &patch)
	}
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return patch, odd, nil
}

// patchParts takes apart, merges and puts together again only what the patch
// speaks of. It gives nil for what has to be done, or refused, as a whole.
func (p *patcher) patchParts(current runtime.Object, patch map[string]any) runtime.Object {
	parts, ok := p.parts(patch)
	if !ok {
		return nil
	}
	view := p.make()
	setParts(view, current, parts)
	sections := make(map[string]reflect.Value, len(patch))
	original := make(map[string]any, len(patch))
	for name := range patch {
		section := reflect.ValueOf(view).Elem().FieldByIndex(p.topField(name).index)
		if section.Kind() != reflect.Struct || writesItself(section.Type()) {
			return nil // a scalar or a list, or a time, which is one in JSON
		}
		taken, err := runtime.DefaultUnstructuredConverter.ToUnstructured(section.Addr().Interface())
		if err != nil {
			return nil
		}
		sections[name], original[name] = section, taken
	}
	if mergeCost(original, patch) > maxMergeCost {
		return nil // to be refused
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(original, patch, view)
	if err != nil {
		return nil
	}
	for name, section := range sections {
		wanted, _ := merged[name].(map[string]any)
		if runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(wanted, section.Addr().Interface(), p.strict()) != nil {
			return nil
		}
	}
	whole := current.DeepCopyObject()
	setParts(whole, view, parts)
	return whole
}

func (p *patcher) topField(name string) *planField {
	return p.r.managers.plans.of(p.e.goType).field(name)
}

// parts are the places of the fields that patch speaks of, of which all others
// are independent. partial is false where that cannot be told.
func (p *patcher) parts(patch map[string]any) (parts [][]int, partial bool) {
	if p.kind != p.e.gvk || len(patch) == 0 {
		return nil, false
	}
	return appendParts(nil, p.r.managers.plans.of(p.e.goType), p.e.goType, nil, patch)
}

// appendParts adds the places below at, which has type t, that patch speaks of:
// it goes down as long as both are objects whose fields have Go fields of their
// own. Directives ("$patch") have none, and speak of the object they stand in.
func appendParts(parts [][]int, plan *fieldPlan, t reflect.Type, at []int, patch map[string]any) ([][]int, bool) {
	for name, value := range patch {
		f := plan.field(name)
		if f == nil {
			return nil, false
		}
		field, place := t.FieldByIndex(f.index).Type, slices.Concat(at, f.index)
		if inner, ok := value.(map[string]any); ok && field.Kind() == reflect.Struct {
			if below, ok := appendParts(parts, f.plan, field, place, inner); ok {
				parts = below
				continue
			}
		}
		parts = append(parts, place)
	}
	return parts, true
}

// setParts sets the parts of to as they are in from.
func setParts(to, from runtime.Object, parts [][]int) {
	target, source := reflect.ValueOf(to).Elem(), reflect.ValueOf(from).Elem()
	for _, place := range parts {
		target.FieldByIndex(place).Set(source.FieldByIndex(place))
	}
}

func strategicFailure(err error) error {
	switch err {
	case mergepatch.ErrBadJSONDoc, mergepatch.ErrBadPatchFormatForPrimitiveList, mergepatch.ErrBadPatchFormatForRetainKeys,
		mergepatch.ErrBadPatchFormatForSetElementOrderList, mergepatch.ErrUnsupportedStrategicMergePatchFormat:
		return apierrors.NewBadRequest(err.Error())
	case mergepatch.ErrNoListOfLists, mergepatch.ErrPatchContentNotMatchRetainKeys:
		return unprocessable(err)
	}
	return plainFailure(err)
}
