package registry

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"orch/store"
)

// Selection narrows a list, watch or collection delete.
type Selection struct {
	Namespace string // "" all
	Labels    labels.Selector
	Fields    fields.Selector
}

const (
	fieldName      = "metadata.name"
	fieldNamespace = "metadata.namespace"
)

// selector is a Selection made ready for matching objects of one entry.
type selector struct {
	e         *entry
	namespace string
	name      string // exact name asked for by a field selector
	labels    labels.Selector
	fields    fields.Selector // nil when metadata alone decides it
	hasFields bool            // any field selector at all
}

// Limits of a selector, which is held against every object of a kind.
const (
	MaxRequirements      = 1000
	MaxRequirementValues = 10_000 // of all requirements together
)

// check refuses a selector that is too long to be held against every object.
func (s Selection) check() error {
	requirements, values := 0, 0
	if s.Labels != nil {
		all, _ := s.Labels.Requirements()
		requirements = len(all)
		for i := range all {
			values += len(all[i].ValuesUnsorted())
		}
	}
	if s.Fields != nil {
		requirements += len(s.Fields.Requirements())
	}
	if requirements > MaxRequirements || values > MaxRequirementValues {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a selector may have %d requirements with %d values, this one has %d with %d",
			MaxRequirements, MaxRequirementValues, requirements, values))
	}
	return nil
}

// compile checks the fields asked for against those that the entry offers.
func (e *entry) compile(sel Selection) (*selector, error) {
	if err := sel.check(); err != nil {
		return nil, err
	}
	s := &selector{e: e, namespace: sel.Namespace}
	if !e.Namespaced {
		s.namespace = ""
	}
	if sel.Labels != nil && !sel.Labels.Empty() {
		s.labels = sel.Labels
	}
	if sel.Fields == nil || sel.Fields.Empty() {
		return s, nil
	}
	s.hasFields = true
	known := e.knownFields()
	for _, req := range sel.Fields.Requirements() {
		if !known.Has(req.Field) {
			return nil, e.unknownField(req.Field)
		}
	}
	if name, ok := sel.Fields.RequiresExactMatch(fieldName); ok {
		s.name = name
	}
	if ns, ok := sel.Fields.RequiresExactMatch(fieldNamespace); ok && s.namespace == "" && e.Namespaced {
		s.namespace = ns
	}
	s.fields = sel.Fields
	return s, nil
}

// knownFields are the field labels that selectors may use.
func (e *entry) knownFields() fields.Set {
	known := fields.Set{fieldName: ""}
	if e.Namespaced || e.Fields == nil { // a kind without fields of its own takes both
		known[fieldNamespace] = ""
	}
	if e.Fields != nil {
		for f := range e.Fields(e.New()) {
			known[f] = ""
		}
	}
	return known
}

func (e *entry) unknownField(label string) error {
	if e.Fields != nil {
		return apierrors.NewBadRequest("field label not supported: " + label)
	}
	return apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", label, fieldName, fieldNamespace))
}

// everything tells that no selector narrows beyond the namespace.
func (s *selector) everything() bool { return s.labels == nil && !s.hasFields }

// prefix is the narrowest range of keys that holds all that matches.
func (s *selector) prefix() string {
	if s.name != "" && (s.namespace != "" || !s.e.Namespaced) {
		return s.e.key(s.namespace, s.name)
	}
	return s.e.root(s.namespace)
}

// matches takes an object in the entry's form.
func (s *selector) matches(obj Object) bool {
	if s.labels != nil && !s.labels.Matches(labels.Set(obj.GetLabels())) {
		return false
	}
	if s.name != "" && obj.GetName() != s.name {
		return false
	}
	return s.fields == nil || s.fields.Matches(s.e.fieldsOf(obj))
}

// fieldsOf gives the values that field selectors see.
func (e *entry) fieldsOf(obj Object) fields.Set {
	var set fields.Set
	if e.Fields != nil {
		set = e.Fields(obj)
	}
	if set == nil {
		set = make(fields.Set, 2)
	}
	set[fieldName] = obj.GetName()
	if e.Namespaced {
		set[fieldNamespace] = obj.GetNamespace()
	}
	return set
}

// fieldsMemo keys the field sets of an event's objects in its Memo, so that
// they are made once and not once per watch.
type fieldsMemo struct {
	e     *entry
	prior bool
}

// matchesEvent is matches for one side of an event.
func (s *selector) matchesEvent(event *store.Event, obj Object, prior bool) bool {
	if s.labels != nil && !s.labels.Matches(labels.Set(obj.GetLabels())) {
		return false
	}
	if s.name != "" && obj.GetName() != s.name {
		return false
	}
	if s.fields == nil {
		return true
	}
	set := event.Memo.Get(fieldsMemo{s.e, prior}, func() any { return s.e.fieldsOf(obj) })
	return s.fields.Matches(set.(fields.Set))
}
