package kinds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"orch/server/registry"
)

// TestNames pins what discovery tells of every entry.
func TestNames(t *testing.T) {
	var out bytes.Buffer
	for _, r := range Table(testConfig()) {
		scope := "cluster"
		if r.Namespaced {
			scope = "namespaced"
		}
		verbs := "all"
		if r.Verbs != nil {
			verbs = strings.Join(r.Verbs, ",")
		}
		fmt.Fprintf(&out, "%s %s/%s %s %s", r.GVK().GroupVersion(), r.Plural, r.Singular, r.Kind, scope)
		fmt.Fprintf(&out, " verbs=%s short=%s categories=%s\n", verbs, strings.Join(r.ShortNames, ","), strings.Join(r.Categories, ","))
		for _, s := range r.Subresources {
			fmt.Fprintf(&out, "  /%s %s\n", s.Name, describe(s))
		}
	}
	golden(t, "names.txt", out.Bytes())
}

func describe(s *registry.Subresource) string {
	kind := s.Kind.GroupVersion().String() + " " + s.Kind.Kind
	if s.Kind.Empty() {
		kind = "itself"
	}
	switch {
	case s.Connect != nil:
		return kind + " connect=" + strings.Join(s.Connect, ",")
	case s.Create != nil:
		return kind + " create"
	case s.Project != nil:
		return kind + " projection"
	}
	return kind + " view"
}

// TestEntries checks what every entry must have.
func TestEntries(t *testing.T) {
	for _, r := range Table(testConfig()) {
		if r.Evaluate != nil {
			continue
		}
		t.Run(r.GroupResource().String(), func(t *testing.T) {
			if r.New == nil || r.NewList == nil || r.Row == nil && r.Columns != nil {
				t.Fatal("incomplete")
			}
			empty := r.New() // must bear it when everything is absent
			if r.Default != nil {
				r.Default(empty)
			}
			if r.Validate != nil {
				r.Validate(empty)
			}
			if r.ValidateUpdate != nil {
				r.ValidateUpdate(empty, empty)
			}
			if r.Fields != nil {
				r.Fields(r.New())
			}
			if r.Claims != nil {
				r.Claims(r.New())
			}
			for _, c := range r.Columns {
				if c.Name == "" || c.Type == "" || c.Description == "" {
					t.Errorf("column %+v lacks something", c)
				}
			}
			if r.Row == nil {
				return
			}
			if got := len(r.Row(r.New(), testTime)); got != len(r.Columns) {
				t.Errorf("%d cells for %d columns", got, len(r.Columns))
			}
		})
	}
}

// TestObjects creates objects of every kind and reads them back: the result
// with its defaults and its table row are pinned.
func TestObjects(t *testing.T) {
	f := newFixture(t)
	docs := documents(t, f.Resources())
	var stored, rows bytes.Buffer
	seen := make(map[*registry.Resource]int)
	for _, d := range docs {
		seen[d.res]++
		obj := f.roundTrip(d)
		stored.WriteString("---\n")
		stored.Write(scrubbed(t, obj))
		if d.res.Row != nil {
			row := strings.ReplaceAll(cells(d.res.Row(obj, testTime)), string(obj.GetUID()), "the-uid")
			fmt.Fprintf(&rows, "%s\t%s\n", d.res.GroupResource(), row)
		}
	}
	for _, r := range f.Resources() {
		if r.Evaluate == nil && r.Report == nil && seen[r] == 0 {
			t.Errorf("testdata/objects.yaml has no %s", r.GVK())
		}
	}
	golden(t, "stored.yaml", stored.Bytes())
	golden(t, "rows.txt", rows.Bytes())
}

// roundTrip creates d's object, reads it, finds it in a list and writes it back unchanged.
func (f *fixture) roundTrip(d manifest) registry.Object {
	f.t.Helper()
	obj := d.object(f.t)
	ns, name := obj.GetNamespace(), obj.GetName()
	created, err := f.Create(f.ctx, d.res, ns, obj, &metav1.CreateOptions{})
	if err != nil {
		f.t.Errorf("create %s %s: %v", d.res.Kind, name, err)
		return obj
	}
	got, err := f.Get(f.ctx, d.res, ns, name, &metav1.GetOptions{})
	if err != nil {
		f.t.Fatalf("get %s %s: %v", d.res.Kind, name, err)
	}
	if !equality.Semantic.DeepEqual(created, got) {
		f.t.Errorf("%s %s: created and read objects differ", d.res.Kind, name)
	}
	list, err := f.List(f.ctx, d.res, registry.Selection{Namespace: ns}, &metav1.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	if !slices.ContainsFunc(list.Items, func(o registry.Object) bool { return o.GetName() == name }) {
		f.t.Errorf("%s %s is not in the list", d.res.Kind, name)
	}
	again, _, err := f.Update(f.ctx, d.res, "", ns, name, got.DeepCopyObject().(registry.Object), &metav1.UpdateOptions{})
	if err != nil {
		f.t.Fatalf("update %s %s: %v", d.res.Kind, name, err)
	}
	if again.(registry.Object).GetResourceVersion() != got.GetResourceVersion() {
		f.t.Errorf("%s %s: writing it back unchanged changed it", d.res.Kind, name)
	}
	return got
}

// scrubbed is obj as YAML without what differs between runs.
func scrubbed(t *testing.T, obj registry.Object) []byte {
	t.Helper()
	uid := string(obj.GetUID())
	obj = obj.DeepCopyObject().(registry.Object)
	obj.SetManagedFields(nil)
	obj.SetResourceVersion("")
	body, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	out, err := yaml.JSONToYAML(bytes.ReplaceAll(body, []byte(uid), []byte("the-uid")))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func cells(row []any) string {
	text := make([]string, len(row))
	for i, c := range row {
		text[i] = fmt.Sprint(c)
	}
	return strings.Join(text, " | ")
}

// TestColumns pins the names and priorities of the printed columns.
func TestColumns(t *testing.T) {
	var out bytes.Buffer
	for _, r := range Table(testConfig()) {
		if r.Columns == nil {
			continue
		}
		names := make([]string, len(r.Columns))
		for i, c := range r.Columns {
			names[i] = c.Name
			if c.Priority > 0 {
				names[i] += "+"
			}
		}
		fmt.Fprintf(&out, "%s\t%s\n", r.GroupResource(), strings.Join(names, " | "))
	}
	golden(t, "columns.txt", out.Bytes())
}
