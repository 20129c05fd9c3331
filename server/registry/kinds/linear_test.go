package kinds

import (
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// fewItems is the length of a list for TestListsTakeLinearTime, which compares it
// with four times as many.
const fewItems = 1000

// TestListsTakeLinearTime fills every list and map of every kind and holds the
// work of a write against its length: a body of 3 MiB has room for hundreds of
// thousands of items. What costs the square of it takes 16 times as long for
// four times as many. Work is measured in the thread's own processor time.
func TestListsTakeLinearTime(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	f := newFixture(t)
	seen := map[string]bool{}
	for _, doc := range documents(t, f.Resources()) {
		for _, place := range places(reflect.TypeOf(doc.object(t)).Elem(), nil, seen, map[reflect.Type]int{}) {
			if slow := f.quadratic(doc, place); slow != "" {
				t.Errorf("%s %s: %s", doc.res.Kind, place, slow)
			}
		}
	}
}

// place is the way to a list or map, by field names.
type place []string

func (p place) String() string { return strings.Join(p, ".") }

// places are the ways to all lists and maps below a type, each field of a struct
// once for all kinds.
func places(t reflect.Type, above place, seen map[string]bool, open map[reflect.Type]int) (all []place) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return places(t.Elem(), above, seen, open)
	case reflect.Struct:
	default:
		return nil
	}
	if open[t] > 0 {
		return nil
	}
	open[t]++
	defer func() { open[t]-- }()
	for i := range t.NumField() {
		field := t.Field(i)
		if !field.IsExported() {
			continue
		}
		here := append(above[:len(above):len(above)], field.Name)
		name := t.String() + "." + field.Name
		listed := field.Type.Kind() == reflect.Slice && field.Type.Elem().Kind() != reflect.Uint8 || field.Type.Kind() == reflect.Map
		if listed && !seen[name] && field.Name != "ManagedFields" {
			seen[name] = true
			all = append(all, here)
		}
		all = append(all, places(field.Type, here, seen, open)...)
	}
	return all
}

// quadratic says how a write's work grows when it grows too fast.
func (f *fixture) quadratic(doc manifest, p place) string {
	const little = 40 * time.Millisecond
	many := f.work(doc, p, 4*fewItems)
	if many < little {
		return ""
	}
	few := f.work(doc, p, fewItems)
	for range 3 { // the machine may be busy
		if many < little || many < 8*few {
			return ""
		}
		few, many = max(few, f.work(doc, p, fewItems)), min(many, f.work(doc, p, 4*fewItems))
	}
	return fmt.Sprintf("%d items take %v, %d take %v", fewItems, few, 4*fewItems, many)
}

// work is the processor time of creating an object with n items at p, and of
// changing it.
func (f *fixture) work(doc manifest, p place, n int) time.Duration {
	obj, old := doc.object(f.t), doc.object(f.t)
	fillPlace(reflect.ValueOf(obj), p, n)
	fillPlace(reflect.ValueOf(old), p, n-1)
	start := processorTime()
	if doc.res.Default != nil {
		doc.res.Default(obj)
		doc.res.Default(old)
	}
	if doc.res.ValidateUpdate != nil {
		_ = doc.res.ValidateUpdate(obj, old)
	}
	for _, sub := range doc.res.Subresources {
		if sub.Update != nil && sub.Update.Validate != nil {
			_ = sub.Update.Validate(obj, old)
		}
	}
	ctx := registry.WithWarnings(f.ctx, func(string) {})
	_, _ = f.Create(ctx, doc.res, obj.GetNamespace(), obj, &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return processorTime() - start
}

func processorTime() time.Duration {
	var usage syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// fillPlace puts n different items into the list or map at p, and one into each
// list on the way.
func fillPlace(v reflect.Value, p place, n int) {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice {
		if v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
			continue
		}
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fillItem(v.Index(0), 0, 2)
		}
		v = v.Index(0)
	}
	v = v.FieldByName(p[0])
	if len(p) > 1 {
		fillPlace(v, p[1:], n)
		return
	}
	if v.Kind() == reflect.Map {
		v.Set(reflect.MakeMap(v.Type()))
		for i := range n {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fillItem(key, i, 0)
			fillItem(value, i, 2)
			v.SetMapIndex(key, value)
		}
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), n, n))
	for i := range n {
		fillItem(v.Index(i), i, 3)
	}
}

// fillItem makes a value that differs from those of other i in all that it holds.
func fillItem(v reflect.Value, i, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("a%d", i))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(i + 1))
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fillItem(v.Elem(), i, depth-1)
		}
	case reflect.Struct:
		for j := range v.NumField() {
			if field := v.Field(j); field.CanSet() && depth > 0 {
				fillItem(field, i, depth-1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.String {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fillItem(v.Index(0), i, 0)
		}
	}
}

// TestSelectorsInObjectsAreBounded: a selector is held against every object that
// comes by.
func TestSelectorsInObjectsAreBounded(t *testing.T) {
	for _, c := range []struct{ requirements, values int }{{maxRequirements + 1, 1}, {2, maxValues}} {
		s := &metav1.LabelSelector{}
		for i := range c.requirements {
			r := metav1.LabelSelectorRequirement{Key: fmt.Sprint("k", i), Operator: metav1.LabelSelectorOpIn}
			for j := range c.values {
				r.Values = append(r.Values, fmt.Sprint("v", j))
			}
			s.MatchExpressions = append(s.MatchExpressions, r)
		}
		var f faults
		if f.selector(nil, s); len(f.list) != 1 || !strings.Contains(f.list[0].Error(), "must have at most 1000 requirements with 10000 values") {
			t.Errorf("%d requirements with %d values: %.300v", c.requirements, c.values, f.list)
		}
		s.MatchExpressions = s.MatchExpressions[:1]
		f = faults{}
		if f.selector(nil, s); len(f.list) != 0 {
			t.Errorf("one requirement: %.300v", f.list)
		}
	}
}
