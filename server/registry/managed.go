package registry

import (
	"fmt"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// managerSet makes field managers when they are first needed: the schema of all
// kinds that they share costs tens of milliseconds to parse.
type managerSet struct {
	plans     planSet
	fields    fieldSets
	converter func() managedfields.TypeConverter

	mu     sync.Mutex
	byView map[viewName]*managedfields.FieldManager
}

// viewName is what a field manager works on: a served kind and the subresource
// through which it is written.
type viewName struct {
	e           *entry
	subresource string
}

// fieldManager gives upstream's field manager for e as seen through subresource.
func (r *Registry) fieldManager(e *entry, subresource string) (*managedfields.FieldManager, error) {
	r.managers.mu.Lock()
	defer r.managers.mu.Unlock()
	name := viewName{e, subresource}
	if m := r.managers.byView[name]; m != nil {
		return m, nil
	}
	kind := e.gvk
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if sub := e.views[subresource]; sub != nil && sub.Project != nil {
		kind = sub.Kind
	} else {
		reset = e.resetFields(subresource)
	}
	objects := conversions{r}
	build, converter := managedfields.NewDefaultFieldManager, r.managers.converter()
	if probe, err := objects.New(kind); err != nil {
		return nil, err
	} else if _, err := converter.ObjectToTyped(probe); err != nil { // a kind without schema: its lists are owned whole
		build, converter = managedfields.NewDefaultCRDFieldManager, managedfields.NewDeducedTypeConverter()
	}
	m, err := build(converter, objects, objects, objects, kind, kind.GroupVersion(), subresource, reset)
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", kind, err)
	}
	if r.managers.byView == nil {
		r.managers.byView = make(map[viewName]*managedfields.FieldManager)
	}
	r.managers.byView[name] = m
	return m, nil
}

// resetFields are those that a write through subresource cannot set and thus
// cannot own: the status of an ordinary write, the spec of a status write.
func (e *entry) resetFields(subresource string) map[fieldpath.APIVersion]fieldpath.Filter {
	var field string
	switch {
	case subresource == "" && e.hasStatus:
		field = "status"
	case subresource == "status":
		field = "spec"
	default:
		return nil
	}
	return map[fieldpath.APIVersion]fieldpath.Filter{
		fieldpath.APIVersion(e.apiVersion): fieldpath.NewExcludeSetFilter(fieldpath.NewSet(fieldpath.MakePathOrDie(field))),
	}
}

// manageCreate records manager as the owner of all that obj sets.
func (r *Registry) manageCreate(e *entry, obj Object, manager string) {
	empty := e.New()
	e.setKind(empty)
	r.manage(e, "", obj, empty, manager)
}

// manageUpdate moves the ownership of all that differs from old to manager.
func (r *Registry) manageUpdate(e *entry, subresource string, obj, old Object, manager string) {
	r.manage(e, subresource, obj, old, manager)
}

// manage records a write that is not an apply. The quick way serves nearly all;
// upstream's field manager judges the rest.
func (r *Registry) manage(e *entry, subresource string, obj, old Object, manager string) {
	if r.own(e, subresource, obj, old, manager) {
		return
	}
	r.manageGenerally(e, subresource, obj, old, manager)
}

func (r *Registry) manageGenerally(e *entry, subresource string, obj, old Object, manager string) {
	if !wellFormedOwners(obj.GetManagedFields()) || tooWide(obj, sizeOf(obj)) || tooWide(old, sizeOf(old)) {
		obj.SetManagedFields(old.GetManagedFields())
		return
	}
	m, err := r.fieldManager(e, subresource)
	if err != nil {
		obj.SetManagedFields(old.GetManagedFields())
		return
	}
	m.UpdateNoErrors(old, obj, manager)
}

// sameManagers tells whether two lists differ in their times at most.
func sameManagers(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) || len(a) == 0 {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		x.Time, y.Time = nil, nil
		if !equality.Semantic.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

// conversions lends the table to the field managers: they convert between
// served versions, apply defaults and make empty objects through it.
type conversions struct{ r *Registry }

func (c conversions) entry(gvk schema.GroupVersionKind) *entry {
	for _, e := range c.r.entries {
		if e.gvk == gvk {
			return e
		}
	}
	return nil
}

// New implements runtime.ObjectCreater.
func (c conversions) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if e := c.entry(gvk); e != nil {
		obj := e.New()
		e.setKind(obj)
		return obj, nil
	}
	obj, err := c.r.scheme.New(gvk)
	if err == nil {
		obj.GetObjectKind().SetGroupVersionKind(gvk)
	}
	return obj, err
}

// Default implements runtime.ObjectDefaulter.
func (c conversions) Default(in runtime.Object) {
	if e := c.entry(in.GetObjectKind().GroupVersionKind()); e != nil && e.Default != nil {
		if obj, ok := in.(Object); ok {
			e.Default(obj)
		}
	}
}

// ConvertToVersion implements runtime.ObjectConvertor: to Go types, and between
// the versions of the table.
func (c conversions) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	have := in.GetObjectKind().GroupVersionKind()
	want, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{have})
	if !ok {
		gv, isVersion := target.(schema.GroupVersion)
		if !isVersion {
			return nil, runtime.NewNotRegisteredErrForTarget("registry", reflect.TypeOf(in), target)
		}
		want = gv.WithKind(have.Kind)
	}
	if loose, ok := in.(*unstructured.Unstructured); ok {
		typed, err := c.New(have)
		if err != nil {
			return nil, err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(loose.Object, typed); err != nil {
			return nil, err
		}
		in = typed
	}
	if want == have {
		return in, nil
	}
	from, to := c.entry(have), c.entry(want)
	obj, isObject := in.(Object)
	if from == nil || to == nil || !isObject || from.storage != to.storage {
		return nil, runtime.NewNotRegisteredErrForKind("registry", want)
	}
	kept, err := from.keep(obj)
	if err != nil {
		return nil, err
	}
	return to.serve(kept)
}

// Convert implements runtime.ObjectConvertor; field managers do not use it.
func (c conversions) Convert(in, out, context any) error {
	return fmt.Errorf("convert %T to %T: not offered", in, out)
}

// ConvertFieldLabel implements runtime.ObjectConvertor; field managers do not use it.
func (c conversions) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
