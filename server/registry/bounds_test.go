package registry

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

// TestStoredSize: an object may not grow beyond etcd's limit, by any way of
// writing, but one that is as large may shrink and go.
func TestStoredSize(t *testing.T) {
	f := newFixture(t)
	half := strings.Repeat("x", maxStored*2/3)
	if _, err := f.Create(f.ctx, f.cms, "default", f.configMap("big", "a", half, "b", half), nil); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("create: %v", err)
	}
	create(f, f.configMap("a", "a", half))
	patch := []byte(`{"data":{"b":"` + half + `"}}`)
	if _, _, err := f.Patch(f.ctx, f.cms, "", "default", "a", types.MergePatchType, patch, nil); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("merge patch: %v", err)
	}
	grow := func(obj Object) error { obj.(*corev1.ConfigMap).Data["b"] = half; return nil }
	if _, err := f.Mutate(f.ctx, f.cms, "", "default", "a", grow); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("mutate: %v", err)
	}
	if _, _, err := f.Patch(f.ctx, f.cms, "", "default", "a", types.MergePatchType, []byte(`{"data":{"a":"small"}}`), nil); err != nil {
		t.Error(err)
	}
}

// TestOwnersGiveWay: who owns what is let go before an object is refused, as upstream.
func TestOwnersGiveWay(t *testing.T) {
	f := newFixture(t)
	data := []string{}
	for i := range 45_000 {
		data = append(data, fmt.Sprintf("a-key-of-some-length-%d", i), "")
	}
	obj := f.configMap("a", data...)
	stored, err := f.Create(f.ctx, f.cms, "default", obj, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored.GetManagedFields()) != 0 || len(stored.(*corev1.ConfigMap).Data) != 45_000 {
		t.Errorf("%d owners, %d keys", len(stored.GetManagedFields()), len(stored.(*corev1.ConfigMap).Data))
	}
}

// TestApplyIsBounded: the field manager takes the square of a map's length.
func TestApplyIsBounded(t *testing.T) {
	f := newFixture(t)
	var data strings.Builder
	for i := range 150_000 {
		fmt.Fprintf(&data, `,"k%d":""`, i)
	}
	config := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":""` + data.String() + `}}`
	apply := func(body string) error {
		_, _, err := f.Patch(f.ctx, f.cms, "", "default", "a", types.ApplyPatchType, []byte(body), &metav1.PatchOptions{FieldManager: "m"})
		return err
	}
	if err := apply(config); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a wide configuration: %v", err)
	}
	var keys []string
	for i := range 50_000 {
		keys = append(keys, fmt.Sprint(i), "")
	}
	create(f, f.configMap("a", keys...))
	if err := apply(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":""}}`); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a wide object: %v", err)
	}
}

// TestDeepOwners: protobuf carries sets of fields as bytes, of any depth.
func TestDeepOwners(t *testing.T) {
	f := newFixture(t)
	obj := f.configMap("a", "k", "v")
	set := &metav1.FieldsV1{}
	set.SetRawBytes([]byte(strings.Repeat(`{"f:a":`, 200_000) + "{}" + strings.Repeat("}", 200_000)))
	obj.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: set}}
	stored := create(f, obj)
	for _, entry := range stored.GetManagedFields() {
		if len(entry.FieldsV1.GetRawBytes()) > 1000 {
			t.Errorf("%s owns %d bytes", entry.Manager, len(entry.FieldsV1.GetRawBytes()))
		}
	}
}

func TestSelectorsAreBounded(t *testing.T) {
	f := newFixture(t)
	create(f, f.configMap("a"))
	values := make([]string, MaxRequirementValues+1)
	terms := make([]string, MaxRequirements+1)
	for i := range values {
		values[i] = fmt.Sprint("v", i)
	}
	for i := range terms {
		terms[i] = fmt.Sprintf("k%d!=v", i)
	}
	for name, sel := range map[string]Selection{
		"many values": {Labels: parseLabels(t, "a in ("+strings.Join(values, ",")+")")},
		"many labels": {Labels: parseLabels(t, strings.Join(terms, ","))},
		"many fields": {Fields: fields.ParseSelectorOrDie(strings.Repeat("metadata.name!=b,", MaxRequirements) + "metadata.name!=c")},
	} {
		if _, err := f.List(f.ctx, f.cms, sel, nil); !apierrors.IsRequestEntityTooLargeError(err) {
			t.Errorf("%s, list: %v", name, err)
		}
		if _, err := f.Watch(f.ctx, f.cms, sel, &metav1.ListOptions{}); !apierrors.IsRequestEntityTooLargeError(err) {
			t.Errorf("%s, watch: %v", name, err)
		}
		if _, err := f.DeleteCollection(f.ctx, f.cms, sel, nil, nil); !apierrors.IsRequestEntityTooLargeError(err) {
			t.Errorf("%s, delete: %v", name, err)
		}
	}
	if _, err := f.List(f.ctx, f.cms, Selection{Labels: parseLabels(t, strings.Join(terms[:MaxRequirements], ","))}, nil); err != nil {
		t.Error(err)
	}
}

// FuzzPatch sends patches of all four kinds to a pod: each is applied or refused.
func FuzzPatch(f *testing.F) {
	fx := newFixture(f)
	pod := create(fx, fx.pod("p", ""))
	kinds := []types.PatchType{types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyPatchType}
	for kind, bodies := range [][]string{
		{`[{"op":"add","path":"/metadata/labels","value":{"a":"b"}},{"op":"copy","from":"/metadata","path":"/spec/x"}]`, `[{"op":"move","from":"/metadata/name","path":"/metadata/name/a"}]`, `[null]`},
		{`{"metadata":{"labels":null,"annotations":{"a":"b"}},"spec":[]}`, `null`, `[]`},
		{`{"spec":{"containers":[{"name":"c","$patch":"delete"}],"$setElementOrder/containers":[{"name":"c"}]}}`, `{"$patch":"replace"}`, `{"$retainKeys":["a"],"metadata":{"$deleteFromPrimitiveList/finalizers":["x"]}}`},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"d","image":"x"}]}}`, "apiVersion: v1\nkind: Pod\nmetadata: &m {name: p}\n", `{"kind":"Pod"}`},
	} {
		for _, body := range bodies {
			f.Add(uint8(kind), []byte(body), "Warn")
			f.Add(uint8(kind), []byte(body), "Ignore")
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, body []byte, validation string) {
		opts := &metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: validation}
		if kinds[kind%4] == types.ApplyPatchType {
			opts.FieldManager = "m"
		}
		obj, _, err := fx.Patch(fx.ctx, fx.pods, "", pod.Namespace, pod.Name, kinds[kind%4], body, opts)
		if err == nil && obj == nil {
			t.Error("neither object nor error")
		}
	})
}

// TestFaultsAreBounded: the message of all faults takes the square of their number.
func TestFaultsAreBounded(t *testing.T) {
	f := newFixture(t)
	obj := f.configMap("a")
	for i := range 20_000 {
		obj.Finalizers = append(obj.Finalizers, fmt.Sprintf("_%d", i))
	}
	_, err := f.Create(f.ctx, f.cms, "default", obj, nil)
	status, ok := err.(apierrors.APIStatus)
	if !ok || len(status.Status().Details.Causes) > maxFaults {
		t.Errorf("%.300v", err)
	}
}

// TestStrategicMergeIsBounded: the library takes the square of a list's length,
// the patch's and the object's.
func TestStrategicMergeIsBounded(t *testing.T) {
	f := newFixture(t)
	pod := f.pod("p", "")
	for i := range 5000 {
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprint("e", i)})
	}
	create(f, pod)
	patch := func(body string) error {
		_, _, err := f.Patch(f.ctx, f.pods, "", "default", "p", types.StrategicMergePatchType, []byte(body), nil)
		return err
	}
	name := pod.Spec.Containers[0].Name
	if err := patch(`{"spec":{"containers":[{"name":"` + name + `","env":[{"name":"a"}]}]}}`); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a long list in the object: %v", err)
	}
	if err := patch(`{"spec":{"containers":[{"name":"` + name + `","$setElementOrder/env":[{"name":"a"}]}]}}`); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("its order: %v", err)
	}
	if err := patch(`{"metadata":{"finalizers":["a"` + strings.Repeat(`,"a/b"`, 5000) + `]}}`); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a long list in the patch: %v", err)
	}
	if err := patch(`{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"` + name + `","image":"y"}]}}`); err != nil {
		t.Errorf("other fields: %v", err)
	}
}
