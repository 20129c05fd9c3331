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
	patch := map[string]any{}
	var odd []error
	var err error
	if p.strict() {
		odd, err = kjson.UnmarshalStrict(p.body, &patch)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.body, &patch)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	shown := func() string { return fmt.Sprintf("%+v", patch) }
	obj := p.make()
	sections, partial := p.sections(current, patch)
	original, err := takeApart(current, sections, partial)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
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
	if partial {
		obj = graft(current, obj, sections)
	}
	if len(odd) == 0 {
		return obj, nil
	}
	return obj, p.report(ctx, shown(), odd)
}

// sections are the top fields of current that patch speaks of, if those are
// structs all: only they have to be taken apart and put together again.
func (p *patcher) sections(current runtime.Object, patch map[string]any) ([]planField, bool) {
	if p.kind != p.e.gvk || len(patch) == 0 {
		return nil, false
	}
	plan := p.r.managers.plans.of(p.e.goType)
	var out []planField
	for name := range patch {
		i := slices.IndexFunc(plan.fields, func(f planField) bool { return f.name == "f:"+name })
		if i < 0 || reflect.ValueOf(current).Elem().FieldByIndex(plan.fields[i].index).Kind() != reflect.Struct {
			return nil, false
		}
		out = append(out, plan.fields[i])
	}
	return out, true
}

// takeApart gives current, or only some sections of it, as JSON has it.
func takeApart(current runtime.Object, sections []planField, partial bool) (map[string]any, error) {
	if !partial {
		return runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	}
	out := make(map[string]any, len(sections))
	for i := range sections {
		f := &sections[i]
		v := f.of(reflect.ValueOf(current).Elem())
		if !v.IsValid() {
			continue
		}
		section, err := runtime.DefaultUnstructuredConverter.ToUnstructured(v.Addr().Interface())
		if err != nil {
			return nil, err
		}
		out[f.name[len("f:"):]] = section
	}
	return out, nil
}

// graft gives a copy of current with the sections of patched.
func graft(current, patched runtime.Object, sections []planField) runtime.Object {
	out := current.DeepCopyObject()
	to, from := reflect.ValueOf(out).Elem(), reflect.ValueOf(patched).Elem()
	for i := range sections {
		to.FieldByIndex(sections[i].index).Set(from.FieldByIndex(sections[i].index))
	}
	return out
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
