package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/applyconfigurations"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
)

// TestFieldTable makes the table of exceptions from client-go's schema.
func TestFieldTable(t *testing.T) {
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	value, err := applyconfigurations.NewTypeConverter(clientscheme.Scheme).ObjectToTyped(pod)
	if err != nil {
		t.Fatal(err)
	}
	got := tableOf(value.Schema())
	const path = "fieldtable.txt"
	if *updateGolden {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != fieldTable {
		t.Errorf("%s is out of date: run this test with -update", path)
	}
}

func tableOf(s *schema.Schema) string {
	var lines []string
	for _, def := range s.Types {
		if def.Map == nil || strings.HasPrefix(def.Name, "__") {
			continue
		}
		var words []string
		if def.Map.ElementRelationship == schema.Atomic {
			words = append(words, "="+ruleAtomic)
		}
		for _, f := range def.Map.Fields {
			if rule := ruleOf(s, f.Type); rule != "" {
				words = append(words, f.Name+"="+rule)
			}
		}
		if len(words) > 0 {
			lines = append(lines, def.Name+" "+strings.Join(words, " ")+"\n")
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

func ruleOf(s *schema.Schema, ref schema.TypeRef) string {
	atom, ok := s.Resolve(ref)
	switch {
	case !ok:
		return ""
	case ref.NamedType != nil:
		switch {
		case ref.ElementRelationship == nil:
		case *ref.ElementRelationship == schema.Atomic:
			return ruleAtomic
		case atom.Map != nil:
			return ruleGranular
		}
	case atom.Map != nil && atom.Map.ElementRelationship == schema.Atomic:
		return ruleAtomic
	case atom.List != nil && atom.List.ElementRelationship == schema.Associative:
		if len(atom.List.Keys) == 0 {
			return ruleSet
		}
		elem, _ := s.Resolve(atom.List.ElementType)
		keys := slices.Sorted(slices.Values(atom.List.Keys))
		for i, k := range keys {
			if f, ok := elem.Map.FindField(k); ok && f.Default != nil {
				text, _ := json.Marshal(f.Default)
				keys[i] += ":" + string(text)
			}
		}
		return strings.Join(keys, ",")
	}
	return ""
}

// filler makes random objects whose lists have distinct keys mostly.
func filler(seed int64) *randfill.Filler {
	return randfill.New().RandSource(rand.NewSource(seed)).NilChance(0.6).NumElements(1, 3).MaxDepth(9).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewMilliQuantity(c.Int63n(5000), resource.DecimalSI)
		},
		func(v *intstr.IntOrString, c randfill.Continue) { *v = intstr.FromInt32(c.Int31n(100)) },
		func(x *metav1.Time, c randfill.Continue) { *x = metav1.Unix(c.Int63n(1<<30)+1, 0) },
		func(x *metav1.MicroTime, c randfill.Continue) {
			*x = metav1.NewMicroTime(time.Unix(c.Int63n(1<<30)+1, 0))
		},
		func(x *runtime.RawExtension, c randfill.Continue) { x.Raw = []byte(`{"a":1}`) },
		func(x *metav1.TypeMeta, c randfill.Continue) {},
		func(x *[]metav1.ManagedFieldsEntry, c randfill.Continue) {},
		func(s *string, c randfill.Continue) { *s = fmt.Sprintf("s%d", c.Intn(50)) },
	)
}

// TestOwnershipIsUpstreams holds the quick way against upstream's field manager.
func TestOwnershipIsUpstreams(t *testing.T) {
	r, err := New(Config{Resources: everyKind()})
	if err != nil {
		t.Fatal(err)
	}
	quick, kinds := 0, 0
	const rounds = 20
	for _, res := range r.Resources() {
		e := r.entryOf(res)
		if probe, _ := (conversions{r}).New(e.gvk); !hasSchema(r, probe) {
			continue
		}
		kinds++
		for seed := range int64(rounds) {
			fill := filler(seed)
			fresh := func() Object {
				obj := e.New()
				fill.Fill(obj)
				e.setKind(obj)
				obj.SetManagedFields(nil)
				obj.SetUID("u")
				return obj
			}
			empty := e.New()
			e.setKind(empty)
			old := fresh()
			quick += r.compareWays(t, e, "", old, empty, "first", seed)
			next := old.DeepCopyObject().(Object)
			patchFrom(next, fresh(), seed)
			quick += r.compareWays(t, e, "", next, old, "second", seed)
			quick += r.compareWays(t, e, "", next.DeepCopyObject().(Object), old, "first", seed)
			if e.hasStatus {
				quick += r.compareWays(t, e, "status", next.DeepCopyObject().(Object), old, "first", seed)
			}
		}
	}
	if kinds < 50 || quick < rounds*kinds {
		t.Errorf("only %d comparisons of %d kinds went the quick way", quick, kinds)
	}
}

func hasSchema(r *Registry, obj runtime.Object) bool {
	_, err := r.managers.converter().ObjectToTyped(obj)
	return err == nil
}

// everyKind makes bare entries for all stable kinds that client-go knows.
func everyKind() (out []*Resource) {
	for gvk, goType := range clientscheme.Scheme.AllKnownTypes() {
		if _, ok := reflect.New(goType).Interface().(Object); !ok || gvk.Kind == "Scale" || gvk.Version != "v1" && gvk.Version != "v2" {
			continue
		}
		res := &Resource{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Plural: strings.ToLower(gvk.Kind) + "s",
			New: func() Object { return reflect.New(goType).Interface().(Object) }}
		if _, ok := goType.FieldByName("Status"); ok {
			res.Subresources = []*Subresource{{Name: "status", Update: &View{}}}
		}
		out = append(out, res)
	}
	slices.SortFunc(out, func(a, b *Resource) int { return strings.Compare(a.Kind+a.Group+a.Version, b.Kind+b.Group+b.Version) })
	return out
}

// patchFrom takes some top fields over from other.
func patchFrom(obj, other Object, seed int64) {
	pick := rand.New(rand.NewSource(seed))
	var mix func(a, b reflect.Value)
	mix = func(a, b reflect.Value) {
		for i := range a.NumField() {
			switch f := a.Field(i); {
			case !f.CanSet() || a.Type().Field(i).Name == "TypeMeta":
			case f.Kind() == reflect.Struct && pick.Intn(3) > 0 && !writesItself(f.Type()):
				mix(f, b.Field(i))
			case pick.Intn(3) == 0:
				f.Set(b.Field(i))
			}
		}
	}
	owners := obj.GetManagedFields()
	mix(reflect.ValueOf(obj).Elem(), reflect.ValueOf(other).Elem())
	obj.SetManagedFields(owners)
}

// compareWays runs both on obj, which keeps the general result, and gives 1
// when the quick way took the case.
func (r *Registry) compareWays(t *testing.T, e *entry, subresource string, obj, old Object, manager string, seed int64) int {
	t.Helper()
	fast := obj.DeepCopyObject().(Object)
	took := r.own(e, subresource, fast, old, manager)
	r.manageGenerally(e, subresource, obj, old, manager)
	if !took {
		return 0
	}
	got, want := ownersText(t, fast), ownersText(t, obj)
	if got != want {
		t.Fatalf("%s %s seed %d:\n got %s\nwant %s", e.gvk, subresource, seed, got, want)
	}
	return 1
}

func ownersText(t *testing.T, obj Object) string {
	t.Helper()
	var b strings.Builder
	owners := obj.GetManagedFields()
	slices.SortFunc(owners, func(a, b metav1.ManagedFieldsEntry) int {
		return strings.Compare(a.Manager+a.Subresource, b.Manager+b.Subresource)
	})
	for _, m := range owners {
		var set fieldpath.Set
		if err := set.FromJSON(bytes.NewReader(m.FieldsV1.GetRawBytes())); err != nil {
			t.Fatal(err)
		}
		text, _ := set.ToJSON()
		fmt.Fprintf(&b, "%s %s %s %s\n", m.Manager, m.Operation, m.Subresource, text)
	}
	return b.String()
}

func TestFieldTrees(t *testing.T) {
	parse := func(s string) *fieldTree {
		tree, err := parseFieldsV1(s)
		if err != nil {
			t.Fatal(s, err)
		}
		return tree
	}
	show := func(tree *fieldTree) string {
		if tree == nil {
			return "-"
		}
		return string(tree.appendJSON(nil))
	}
	const a, b = `{"f:a":{".":{},"f:x":{}},"f:b":{}}`, `{"f:a":{"f:x":{},"f:y":{}},"f:c":{}}`
	for _, c := range []struct{ got, want string }{
		{show(parse(a)), a},
		{show(parse(a).union(parse(b))), `{"f:a":{".":{},"f:x":{},"f:y":{}},"f:b":{},"f:c":{}}`},
		{show(parse(a).without(parse(b))), `{"f:a":{},"f:b":{}}`},
		{show(parse(b).without(parse(a))), `{"f:a":{"f:y":{}},"f:c":{}}`},
		{show(parse(a).without(parse(a))), "-"},
		{show(parse(`{}`)), "-"},
		{show(parse(a).drop("f:a")), `{"f:b":{}}`},
		{show(parse(`{"k:{\"name\":\"x\"}":{}}`)), `{"k:{\"name\":\"x\"}":{}}`},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
	for _, bad := range []string{"", "{", `{"a"}`, `{"a":1}`, `{} x`, `{"a":{},"a":{}}`} {
		if tree, err := parseFieldsV1(bad); err == nil {
			t.Errorf("%q parsed as %s", bad, show(tree))
		}
	}
}

func FuzzParseFieldsV1(f *testing.F) {
	f.Add(`{"f:a":{".":{},"k:{\"x\":1}":{}}}`)
	f.Fuzz(func(t *testing.T, s string) {
		tree, err := parseFieldsV1(s)
		if err != nil || tree == nil {
			return
		}
		again, err := parseFieldsV1(string(tree.appendJSON(nil)))
		if err != nil || string(again.appendJSON(nil)) != string(tree.appendJSON(nil)) {
			t.Errorf("%q does not survive", s)
		}
	})
}
