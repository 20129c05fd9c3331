// Package registry gives the stored bytes their meaning: one table entry per
// resource (defaults, validation, columns …) and the generic create, read,
// update, patch, delete, list and watch on top of the store. The API, the
// scheduler and the controllers all enter here.
package registry

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is what the registry keeps: any Kubernetes API object with metadata.
// Objects that come out of the registry are shared and must not be changed;
// DeepCopy first.
type Object interface {
	runtime.Object
	metav1.Object
}

// Resource is the table entry of one served resource in one version. Function
// fields that are nil do nothing.
type Resource struct {
	Group, Version, Kind string
	Plural, Singular     string // "pods", "pod"
	ShortNames           []string
	Categories           []string
	Namespaced           bool
	Verbs                []string // nil: all of create get list watch update patch delete deletecollection

	New     func() Object
	NewList func() runtime.Object

	// Stored is set when objects of this entry are kept in another version's
	// form (autoscaling/v1 in v2, events.k8s.io in core events).
	Stored *Conversion

	// Virtual resources (reviews) are not kept: Evaluate answers a create.
	Evaluate func(ctx context.Context, r *Registry, ns string, obj Object, dryRun bool) (Object, error)

	// Report gives the objects of a resource that is not kept either, but can be
	// read: they are made for each read, and neither written nor watched.
	Report func(ctx context.Context, r *Registry) []Object

	Deprecated string // what every request for the resource is warned of

	Strategy

	Subresources []*Subresource
}

// Conversion maps a served version to the entry under which it is stored.
type Conversion struct {
	Resource string // full name: "horizontalpodautoscalers.autoscaling/v2"
	To       func(Object) (Object, error)
	From     func(Object) (Object, error)
	// Validate is what is asked of an object written in the served version beyond
	// what the stored entry asks of all. Both have the stored form; old is nil at a
	// create.
	Validate func(obj, old Object) field.ErrorList
}

// Strategy is what differs between resources. Validation errors become 422
// Invalid with causes; an *errors.StatusError passes through as it is.
type Strategy struct {
	// Default fills in absent fields, for create, update and patch alike, and for
	// reads of objects written before the default existed.
	Default func(obj Object)
	// PrepareCreate clears what a client may not set (status) and allocates
	// (cluster IPs). PrepareUpdate carries over what an ordinary update may not
	// change (status). Generation is handled by the registry: 1 on create, raised
	// when Spec differs.
	PrepareCreate func(ctx context.Context, r *Registry, obj Object) error
	PrepareUpdate func(ctx context.Context, r *Registry, obj, old Object) error
	// Spec gives the part of obj whose change raises metadata.generation; nil:
	// the resource has no generation.
	Spec           func(obj Object) any
	Validate       func(obj Object) field.ErrorList
	ValidateUpdate func(obj, old Object) field.ErrorList   // Validate runs too
	ValidateName   func(name string, prefix bool) []string // nil: DNS subdomain
	Warnings       func(obj Object) []string
	// Fields are the field selectors besides metadata.name and metadata.namespace.
	Fields func(obj Object) fields.Set
	// Lane gives the field of that name, by which most watchers choose, so that
	// each need not look at the others' events.
	Lane      func(obj Object) string
	LaneField string
	// Claims are names that at most one object may hold ("clusterip/10.43.0.7",
	// "nodeport/TCP/30080"). They are taken and given back in the same
	// transaction as the object itself.
	Claims func(obj Object) []string
	// ClaimError words the refusal when a claim that obj asked for (it was there
	// before PrepareCreate) is held by another object; nil: a plain 422.
	ClaimError func(obj Object, claim string) error
	// Held tells that obj has finalizers of its own besides metadata.finalizers
	// (a namespace's spec.finalizers): a delete only marks it, and the update that
	// releases it removes it.
	Held func(obj Object) bool
	// BeginDelete decides on a graceful deletion: it may change options (grace
	// period) and obj (a private copy) and returns true when the object must stay
	// until its grace period was confirmed by a delete with period 0 (pods).
	BeginDelete         func(ctx context.Context, r *Registry, obj Object, options *metav1.DeleteOptions) (graceful bool, err error)
	CreateOnUpdate      bool                       // PUT of an absent object creates it
	UnconditionalUpdate bool                       // an update without resourceVersion is allowed
	DefaultPropagation  metav1.DeletionPropagation // "" means background
	Encrypt             bool                       // encrypted at rest

	Columns []metav1.TableColumnDefinition
	Row     func(obj Object, now time.Time) []any
}

// Subresource is one of: a view of the parent (Update set), another kind
// projected onto the parent (Project set), an action (Create set), or a stream
// that the API layer proxies to the node (Connect set). An action may also have
// a view: the API does not serve it, Create writes through it (pods/binding).
type Subresource struct {
	Name string
	Kind schema.GroupVersionKind // of its body; zero: the parent's
	New  func() runtime.Object   // nil: the parent's

	Update  *View
	Project *Projection
	Create  func(ctx context.Context, r *Registry, ns, name string, body runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error)
	Connect []string // verbs: "get", "create" …
}

// View is a subresource with the parent's own kind: status, finalize,
// approval, ephemeralcontainers, resize.
type View struct {
	// Prepare puts back from old all that this view may not change.
	Prepare  func(ctx context.Context, obj, old Object)
	Validate func(obj, old Object) field.ErrorList
}

// Projection is a subresource of another kind: scale.
type Projection struct {
	Get func(obj Object) (runtime.Object, error)
	Set func(obj Object, body runtime.Object) error // obj is a private copy

	Columns []metav1.TableColumnDefinition
	Row     func(obj Object, now time.Time) []any
}

// GVK is the kind that the entry serves.
func (r *Resource) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// GroupResource names the resource without its version.
func (r *Resource) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Plural}
}
