package kinds

import (
	"context"
	"reflect"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// traits is a registry.Strategy in terms of the concrete type P, plus the names
// of the resource. Fields that are nil do nothing.
type traits[P registry.Object] struct {
	ShortNames, Categories []string
	Singular               string // "": the kind in lower case
	Cluster                bool   // not namespaced
	Verbs                  []string
	Stored                 *registry.Conversion
	Report                 func(context.Context, *registry.Registry) []registry.Object
	Deprecated             string

	// Spec is the part that raises the generation. Status is the part that only
	// the status view may change; giving it makes that view.
	Spec, Status section[P]
	// Unnumbered kinds have a spec but, as upstream, no generation.
	Unnumbered bool
	// StatusPrepare and StatusValidate add to what the status view does.
	StatusPrepare  func(obj, old P)
	StatusValidate func(obj, old P) field.ErrorList

	Default        func(P)
	PrepareCreate  func(ctx context.Context, r *registry.Registry, obj P) error
	PrepareUpdate  func(ctx context.Context, r *registry.Registry, obj, old P) error
	Validate       func(P) field.ErrorList
	ValidateUpdate func(obj, old P) field.ErrorList
	ValidateName   func(name string, prefix bool) []string
	Warnings       func(P) []string
	Fields         func(P) fields.Set
	Lane           func(P) string // the field LaneField, see registry.Strategy
	LaneField      string
	Claims         func(P) []string
	ClaimError     func(obj P, claim string) error
	Held           func(P) bool
	BeginDelete    func(ctx context.Context, r *registry.Registry, obj P, options *metav1.DeleteOptions) (bool, error)

	CreateOnUpdate, UnconditionalUpdate, Encrypt bool
	DefaultPropagation                           metav1.DeletionPropagation

	Columns []metav1.TableColumnDefinition
	Row     func(obj P, now time.Time) []any

	Subresources []*registry.Subresource
}

type pointer[T any] interface {
	*T
	registry.Object
}

type listPointer[L any] interface {
	*L
	runtime.Object
}

// entry makes the table entry of the API type T with list type L.
func entry[T, L any, P pointer[T], Q listPointer[L]](gv schema.GroupVersion, plural string, t traits[P]) *registry.Resource {
	kind := reflect.TypeFor[T]().Name()
	res := &registry.Resource{
		Group: gv.Group, Version: gv.Version, Kind: kind,
		Plural: plural, Singular: t.Singular,
		ShortNames: t.ShortNames, Categories: t.Categories,
		Namespaced:   !t.Cluster,
		Verbs:        t.Verbs,
		New:          func() registry.Object { return P(new(T)) },
		NewList:      func() runtime.Object { return Q(new(L)) },
		Stored:       t.Stored,
		Report:       t.Report,
		Deprecated:   t.Deprecated,
		Strategy:     t.strategy(),
		Subresources: t.Subresources,
	}
	if res.Singular == "" {
		res.Singular = strings.ToLower(kind)
	}
	if t.Status != nil {
		res.Subresources = append(res.Subresources, statusView(t))
	}
	return res
}

// virtual makes the table entry of a kind that is evaluated and not kept.
func virtual[T any, P pointer[T]](gv schema.GroupVersion, plural string, namespaced bool,
	evaluate func(ctx context.Context, r *registry.Registry, ns string, obj P) (registry.Object, error)) *registry.Resource {
	kind := reflect.TypeFor[T]().Name()
	return &registry.Resource{
		Group: gv.Group, Version: gv.Version, Kind: kind,
		Plural: plural, Singular: strings.ToLower(kind), Namespaced: namespaced,
		Verbs: []string{"create"},
		New:   func() registry.Object { return P(new(T)) },
		Evaluate: func(ctx context.Context, r *registry.Registry, ns string, obj registry.Object, _ bool) (registry.Object, error) {
			return evaluate(ctx, r, ns, obj.(P)) // a review changes nothing, dry run or not
		},
	}
}

func (t *traits[P]) strategy() registry.Strategy {
	s := registry.Strategy{
		ValidateName: t.ValidateName,
		Columns:      t.Columns, CreateOnUpdate: t.CreateOnUpdate, UnconditionalUpdate: t.UnconditionalUpdate,
		DefaultPropagation: t.DefaultPropagation, Encrypt: t.Encrypt,
		Default:        call(t.Default),
		Validate:       ask(t.Validate),
		ValidateUpdate: compare(t.ValidateUpdate),
		Warnings:       ask(t.Warnings),
		Fields:         ask(t.Fields),
		Lane:           ask(t.Lane),
		LaneField:      t.LaneField,
		Claims:         ask(t.Claims),
		Held:           ask(t.Held),
		PrepareCreate:  t.prepareCreate(),
		PrepareUpdate:  t.prepareUpdate(),
	}
	if t.Spec != nil && !t.Unnumbered {
		spec := t.Spec
		s.Spec = func(obj registry.Object) any { return spec.of(obj.(P)) }
	}
	if refuse := t.ClaimError; refuse != nil {
		s.ClaimError = func(obj registry.Object, claim string) error { return refuse(obj.(P), claim) }
	}
	if begin := t.BeginDelete; begin != nil {
		s.BeginDelete = func(ctx context.Context, r *registry.Registry, obj registry.Object, options *metav1.DeleteOptions) (bool, error) {
			return begin(ctx, r, obj.(P), options)
		}
	}
	if row := t.Row; row != nil {
		s.Row = func(obj registry.Object, now time.Time) []any { return row(obj.(P), now) }
	}
	return s
}

func (t *traits[P]) prepareCreate() func(context.Context, *registry.Registry, registry.Object) error {
	status, more := t.Status, t.PrepareCreate
	if status == nil && more == nil {
		return nil
	}
	return func(ctx context.Context, r *registry.Registry, obj registry.Object) error {
		if status != nil {
			status.reset(obj.(P))
		}
		if more != nil {
			return more(ctx, r, obj.(P))
		}
		return nil
	}
}

func (t *traits[P]) prepareUpdate() func(context.Context, *registry.Registry, registry.Object, registry.Object) error {
	status, more := t.Status, t.PrepareUpdate
	if status == nil && more == nil {
		return nil
	}
	return func(ctx context.Context, r *registry.Registry, obj, old registry.Object) error {
		if status != nil {
			status.carry(obj.(P), old.(P))
		}
		if more != nil {
			return more(ctx, r, obj.(P), old.(P))
		}
		return nil
	}
}

// statusView lets the status change, and labels, annotations and finalizers
// with it, but never the spec.
func statusView[P registry.Object](t traits[P]) *registry.Subresource {
	spec, prepare := t.Spec, t.StatusPrepare
	return &registry.Subresource{Name: "status", Update: &registry.View{
		Prepare: func(_ context.Context, obj, old registry.Object) {
			if spec != nil {
				spec.carry(obj.(P), old.(P))
			}
			if prepare != nil {
				prepare(obj.(P), old.(P))
			}
		},
		Validate: compare(t.StatusValidate),
	}}
}

// section is one field of P, such as its spec or its status.
type section[P any] interface {
	of(P) any
	reset(P)
	carry(to, from P) // shares what from points to, which is immutable
}

type part[P, S any] func(P) *S

func (at part[P, S]) of(obj P) any { return at(obj) }

func (at part[P, S]) reset(obj P) { *at(obj) = *new(S) }

func (at part[P, S]) carry(to, from P) { *at(to) = *at(from) }

// within gives the section of P that at points to.
func within[P, S any](at func(P) *S) section[P] { return part[P, S](at) }

func call[P registry.Object](f func(P)) func(registry.Object) {
	if f == nil {
		return nil
	}
	return func(obj registry.Object) { f(obj.(P)) }
}

func ask[P registry.Object, A any](f func(P) A) func(registry.Object) A {
	if f == nil {
		return nil
	}
	return func(obj registry.Object) A { return f(obj.(P)) }
}

func compare[P registry.Object](f func(obj, old P) field.ErrorList) func(obj, old registry.Object) field.ErrorList {
	if f == nil {
		return nil
	}
	return func(obj, old registry.Object) field.ErrorList { return f(obj.(P), old.(P)) }
}

// connect is a subresource that the API layer proxies to a node.
func connect(name string, kind schema.GroupVersionKind, verbs ...string) *registry.Subresource {
	return &registry.Subresource{Name: name, Kind: kind, Connect: verbs}
}

// proxyVerbs are those of the proxy subresources.
func proxyVerbs() []string { return []string{"get", "create", "update", "patch", "delete"} }
