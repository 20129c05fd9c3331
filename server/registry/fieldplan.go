package registry

import (
	_ "embed"
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// fieldTable holds what the Go types do not tell about ownership: which lists
// are sets or keyed, which maps and structs are owned as a whole. A line is a
// type's OpenAPI name and its exceptions; TestFieldTable makes it from
// client-go's schema.
//
//go:embed fieldtable.txt
var fieldTable string

// planKind is how a value is owned.
type planKind int8

const (
	ownedWhole planKind = iota // scalars, atomic lists, maps and structs
	ownedByField
	ownedByEntry // maps
	ownedByKey   // lists of objects told apart by keys
	ownedByValue // lists of scalars without order
)

// fieldPlan tells how values of one Go type at one place are owned.
type fieldPlan struct {
	kind   planKind
	fields []planField // ownedByField, in order of name
	elem   *fieldPlan  // ownedByEntry, ownedByKey
	keys   []planKey   // ownedByKey, in order of name
}

type planField struct {
	name      string // "f:replicas"
	index     []int
	omitEmpty bool
	omitZero  func(reflect.Value) bool
	plan      *fieldPlan
}

// field finds a field by its name in JSON, nil when there is none.
func (p *fieldPlan) field(name string) *planField {
	i, ok := slices.BinarySearchFunc(p.fields, "f:"+name, func(f planField, name string) int { return strings.Compare(f.name, name) })
	if !ok {
		return nil
	}
	return &p.fields[i]
}

type planKey struct {
	name     string // as JSON: `"containerPort":`
	field    planField
	fallback string // JSON of the default, "" for none
}

// planSet makes plans on first use.
type planSet struct {
	mu    sync.Mutex
	table map[string]map[string]string // OpenAPI name, field ("" the type itself), rule
	plans map[planID]*fieldPlan
}

// planID names a type at a place: the rule of the place overrides the type's.
type planID struct {
	goType reflect.Type
	rule   string
}

func (s *planSet) of(t reflect.Type) *fieldPlan {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plans == nil {
		s.plans, s.table = make(map[planID]*fieldPlan), parseFieldTable(fieldTable)
	}
	return s.plan(t, "")
}

func parseFieldTable(text string) map[string]map[string]string {
	table := make(map[string]map[string]string)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		rules := make(map[string]string, len(words)-1)
		for _, w := range words[1:] {
			field, rule, _ := strings.Cut(w, "=")
			rules[field] = rule
		}
		table[words[0]] = rules
	}
	return table
}

// The rules of the table besides lists of keys ("name" or "port,protocol:TCP").
const (
	ruleAtomic   = "!atomic"
	ruleGranular = "!granular" // although the type says atomic
	ruleSet      = "!set"
)

// plan makes the plan of t where rule applies. mu is held.
func (s *planSet) plan(t reflect.Type, rule string) *fieldPlan {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	id := planID{t, rule}
	if p := s.plans[id]; p != nil {
		return p
	}
	p := &fieldPlan{}
	s.plans[id] = p
	if rule == ruleAtomic || writesItself(t) {
		return p
	}
	switch t.Kind() {
	case reflect.Struct:
		if rules := s.table[modelName(t)]; rules[""] != ruleAtomic || rule == ruleGranular {
			p.kind, p.fields = ownedByField, s.structFields(t, rules, nil)
			slices.SortFunc(p.fields, func(a, b planField) int { return strings.Compare(a.name, b.name) })
		}
	case reflect.Map:
		p.kind, p.elem = ownedByEntry, s.plan(t.Elem(), "")
	case reflect.Slice:
		switch rule {
		case "":
		case ruleSet:
			p.kind = ownedByValue
		default:
			p.kind, p.elem = ownedByKey, s.plan(t.Elem(), "")
			p.keys = s.keyFields(t.Elem(), rule)
		}
	}
	return p
}

// structFields lists the fields of t as JSON shows them, those of inlined
// structs too.
func (s *planSet) structFields(t reflect.Type, rules map[string]string, above []int) (out []planField) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if tag == "-" || f.PkgPath != "" && !f.Anonymous {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		index := append(slices.Clone(above), i)
		if f.Anonymous && name == "" {
			inner := f.Type
			for inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			merged := rules
			if own := s.table[modelName(inner)]; own != nil && len(rules) == 0 {
				merged = own
			}
			out = append(out, s.structFields(inner, merged, index)...)
			continue
		}
		if name == "" {
			name = f.Name
		}
		field := planField{name: "f:" + name, index: index, omitEmpty: hasOption(options, "omitempty"), plan: s.plan(f.Type, rules[name])}
		if hasOption(options, "omitzero") {
			field.omitZero = zeroTest(f.Type)
		}
		out = append(out, field)
	}
	return out
}

func hasOption(options, want string) bool {
	return slices.Contains(strings.Split(options, ","), want)
}

// zeroTest is how encoding/json decides omitzero.
func zeroTest(t reflect.Type) func(reflect.Value) bool {
	type zeroer interface{ IsZero() bool }
	if t.Implements(reflect.TypeFor[zeroer]()) && t.Kind() != reflect.Pointer {
		return func(v reflect.Value) bool { return v.Interface().(zeroer).IsZero() }
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[zeroer]()) {
		return func(v reflect.Value) bool {
			if v.CanAddr() {
				return v.Addr().Interface().(zeroer).IsZero()
			}
			return v.IsZero()
		}
	}
	return reflect.Value.IsZero
}

// keyFields resolves the keys of a rule among the fields of the list's elements,
// which may be owned as a whole themselves.
func (s *planSet) keyFields(elem reflect.Type, rule string) (keys []planKey) {
	for elem.Kind() == reflect.Pointer {
		elem = elem.Elem()
	}
	for word := range strings.SplitSeq(rule, ",") {
		name, fallback, _ := strings.Cut(word, ":")
		for _, f := range s.structFields(elem, nil, nil) {
			if f.name == "f:"+name {
				keys = append(keys, planKey{string(appendJSONString(nil, name)) + ":", f, fallback})
			}
		}
	}
	return keys
}

// writesItself tells that t has a JSON form of its own, which is a scalar to
// ownership.
func writesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Marshaler]()) || p.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// modelName is the OpenAPI name that generated code gives a type.
func modelName(t reflect.Type) string {
	if m, ok := reflect.Zero(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	return ""
}
