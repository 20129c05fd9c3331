package registry

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fieldDiff compares two objects the way structured-merge-diff compares their
// typed values, but on the Go values and from a plan made once per type.
type fieldDiff struct {
	odd bool // met something that only the general comparison can judge
}

// diffFields gives the fields that after sets or changes, and those it removes.
// ok is false when the general comparison has to decide.
func diffFields(p *fieldPlan, before, after any) (changed, removed *fieldTree, ok bool) {
	var d fieldDiff
	changed, removed = d.compare(p, reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem())
	return changed.orNil(), removed.orNil(), !d.odd
}

// compare takes an invalid Value for an absent side; a nil pointer, map or
// slice is a present null.
func (d *fieldDiff) compare(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree) {
	if l.IsValid() == r.IsValid() && (!l.IsValid() || identical(l, r)) {
		return nil, nil
	}
	var found bool
	switch p.kind {
	case ownedByField:
		changed, removed, found = d.compareFields(p, deref(l), deref(r))
	case ownedByEntry:
		changed, removed, found = d.compareEntries(p, deref(l), deref(r))
	case ownedByKey, ownedByValue:
		changed, removed, found = d.compareItems(p, deref(l), deref(r))
	}
	if !found { // a leaf, or empty on both sides
		return d.compareWhole(p, l, r)
	}
	if !l.IsValid() {
		changed = mark(changed)
	} else if !r.IsValid() {
		removed = mark(removed)
	}
	return changed, removed
}

func mark(t *fieldTree) *fieldTree {
	if t == nil {
		t = &fieldTree{}
	}
	t.member = true
	return t
}

func (d *fieldDiff) compareWhole(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree) {
	switch {
	case !l.IsValid():
		return leafField, nil
	case !r.IsValid():
		return nil, leafField
	case !sameValue(l, r):
		return leafField, nil
	}
	return nil, nil
}

// branches collects the results of children in order.
type branches struct{ changed, removed *fieldTree }

func (b *branches) add(name string, changed, removed *fieldTree) {
	if changed = changed.orNil(); changed != nil {
		if b.changed == nil {
			b.changed = &fieldTree{}
		}
		b.changed.add(name, changed)
	}
	if removed = removed.orNil(); removed != nil {
		if b.removed == nil {
			b.removed = &fieldTree{}
		}
		b.removed.add(name, removed)
	}
}

func (d *fieldDiff) compareFields(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree, found bool) {
	var b branches
	for i := range p.fields {
		f := &p.fields[i]
		lf, rf := f.of(l), f.of(r)
		if !lf.IsValid() && !rf.IsValid() {
			continue
		}
		found = true
		c, x := d.compare(f.plan, lf, rf)
		b.add(f.name, c, x)
	}
	return b.changed, b.removed, found
}

// of gives the field's value in a struct, invalid when JSON would leave it out.
func (f *planField) of(v reflect.Value) reflect.Value {
	if !v.IsValid() {
		return v
	}
	for _, i := range f.index {
		if v = deref(v); !v.IsValid() {
			return v
		}
		v = v.Field(i)
	}
	if f.omitEmpty && emptyValue(v) || f.omitZero != nil && f.omitZero(v) {
		return reflect.Value{}
	}
	return v
}

func (d *fieldDiff) compareEntries(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree, found bool) {
	names := entryNames(l, r)
	var b branches
	for _, name := range names {
		c, x := d.compare(p.elem, entryAt(l, name), entryAt(r, name))
		b.add("f:"+name, c, x)
	}
	return b.changed, b.removed, len(names) > 0
}

func entryNames(maps ...reflect.Value) (names []string) {
	for _, m := range maps {
		if m.IsValid() {
			for it := m.MapRange(); it.Next(); {
				names = append(names, it.Key().String())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func entryAt(m reflect.Value, name string) reflect.Value {
	if !m.IsValid() || m.Len() == 0 {
		return reflect.Value{}
	}
	return m.MapIndex(reflect.ValueOf(name).Convert(m.Type().Key()))
}

// item is an element of a list with the path element that names it.
type item struct {
	name  string
	value reflect.Value
}

func (d *fieldDiff) compareItems(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree, found bool) {
	before, after := d.items(p, l), d.items(p, r)
	var b branches
	for i, j := 0, 0; i < len(before) || j < len(after); {
		var li, ri reflect.Value
		var name string
		switch {
		case j == len(after) || i < len(before) && before[i].name < after[j].name:
			name, li, i = before[i].name, before[i].value, i+1
		case i == len(before) || after[j].name < before[i].name:
			name, ri, j = after[j].name, after[j].value, j+1
		default:
			name, li, ri = before[i].name, before[i].value, after[j].value
			i, j = i+1, j+1
		}
		c, x := d.compareItem(p, li, ri)
		b.add(name, c, x)
	}
	return b.changed, b.removed, len(before)+len(after) > 0
}

func (d *fieldDiff) compareItem(p *fieldPlan, l, r reflect.Value) (changed, removed *fieldTree) {
	if p.kind == ownedByValue {
		return d.compareWhole(p, l, r)
	}
	return d.compare(p.elem, l, r)
}

// items names the elements of a list, in order of name. Repeated names are odd.
func (d *fieldDiff) items(p *fieldPlan, list reflect.Value) []item {
	if !list.IsValid() || list.Len() == 0 {
		return nil
	}
	out := make([]item, list.Len())
	for i := range out {
		v := list.Index(i)
		name, ok := p.itemName(deref(v))
		if !ok {
			d.odd = true
		}
		out[i] = item{name, v}
	}
	slices.SortFunc(out, func(a, b item) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(out); i++ {
		if out[i].name == out[i-1].name {
			d.odd = true
		}
	}
	return out
}

// itemName is the path element of a list's element.
func (p *fieldPlan) itemName(v reflect.Value) (string, bool) {
	if p.kind == ownedByValue {
		b, ok := appendScalar([]byte("v:"), v)
		return string(b), ok
	}
	b := []byte("k:{")
	for i := range p.keys {
		k := &p.keys[i]
		key := k.field.of(v)
		if !key.IsValid() && k.fallback == "" {
			continue
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(b, k.name...)
		if !key.IsValid() {
			b = append(b, k.fallback...)
			continue
		}
		var ok bool
		if b, ok = appendScalar(b, deref(key)); !ok {
			return "", false
		}
	}
	if b[len(b)-1] == '{' {
		return "", false
	}
	return string(append(b, '}')), true
}

func appendScalar(b []byte, v reflect.Value) ([]byte, bool) {
	if !v.IsValid() || writesItself(v.Type()) {
		return b, false
	}
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); strings.ContainsAny(s, "<>&\u2028\u2029") {
			quoted, err := json.Marshal(s)
			return append(b, quoted...), err == nil
		}
		return appendJSONString(b, v.String()), true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), true
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), true
	}
	return b, false
}

// deref follows pointers; a nil one gives an invalid Value.
func deref(v reflect.Value) reflect.Value {
	for v.IsValid() && v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return v
}

// emptyValue is what omitempty leaves out.
func emptyValue(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice, reflect.String, reflect.Array:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// sameValue compares as JSON would show it.
func sameValue(l, r reflect.Value) bool {
	switch l.Kind() {
	case reflect.Pointer:
		if l.Pointer() == r.Pointer() {
			return true
		}
		if l.IsNil() || r.IsNil() {
			return false
		}
		return sameValue(l.Elem(), r.Elem())
	case reflect.String:
		return l.String() == r.String()
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return l.Equal(r)
	case reflect.Struct:
		if same, known := sameScalarStruct(l, r); known {
			return same
		}
	case reflect.Slice, reflect.Map:
		if l.IsNil() != r.IsNil() || l.Len() != r.Len() {
			return false
		}
	}
	return reflect.DeepEqual(l.Interface(), r.Interface()) || sameJSON(l.Interface(), r.Interface())
}

// sameScalarStruct knows the structs that are everywhere.
func sameScalarStruct(l, r reflect.Value) (same, known bool) {
	switch a := l.Interface().(type) {
	case metav1.Time:
		b := r.Interface().(metav1.Time)
		return a.IsZero() == b.IsZero() && a.Unix() == b.Unix(), true
	case resource.Quantity:
		b := r.Interface().(resource.Quantity)
		return a.String() == b.String(), true
	}
	return false, false
}

func sameJSON(a, b any) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}
