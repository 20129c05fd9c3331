package registry

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	"orch/store"
)

// Config of a registry.
type Config struct {
	Store      *store.Store
	Resources  []*Resource
	Admission  []Admission      // in order, on every write
	Now        func() time.Time // nil: time.Now
	Encryption Encryption       // nil: values of Encrypt resources are kept in clear
}

// Encryption transforms values at rest; the key is bound to the ciphertext.
type Encryption interface {
	Encrypt(key string, plain []byte) ([]byte, error)
	Decrypt(key string, sealed []byte) ([]byte, error)
}

// Registry is the table of resources over a store.
type Registry struct {
	store     *store.Store
	write     func(context.Context, ...store.Op) ([]*store.Entry, error) // the store's Update; a seam for tests
	read      func(key string) (*store.Entry, int64)                     // the store's Get, with which a change begins; likewise
	admission []Admission
	now       func() time.Time
	codec     *codec
	scheme    *runtime.Scheme
	resources []*Resource
	entries   map[*Resource]*entry
	byName    map[resourceName]*entry
	bookmarks bookmarkClock
	managers  managerSet
}

type resourceName struct{ group, version, plural string }

// entry is a Resource with what the registry derives from it once.
type entry struct {
	*Resource
	gvk        schema.GroupVersionKind
	gr         schema.GroupResource
	apiVersion string
	prefix     string // of its keys: "pods/", "deployments.apps/"
	goType     reflect.Type
	storage    *entry // the entry whose form is kept; itself unless Stored is set
	views      map[string]*Subresource
	hasStatus  bool
}

// New checks the table and links its entries. The store may be given later to
// the same Config by UseStore, because the store itself needs StoreCodec.
func New(cfg Config) (*Registry, error) {
	r := &Registry{
		store:     cfg.Store,
		admission: cfg.Admission,
		now:       cfg.Now,
		resources: cfg.Resources,
		entries:   make(map[*Resource]*entry, len(cfg.Resources)),
		byName:    make(map[resourceName]*entry, len(cfg.Resources)),
	}
	if r.now == nil {
		r.now = time.Now
	}
	if err := r.buildTable(); err != nil {
		return nil, err
	}
	if err := r.buildScheme(); err != nil {
		return nil, err
	}
	r.codec = newCodec(r.entries, cfg.Encryption)
	r.managers.converter = sync.OnceValue(func() managedfields.TypeConverter { return newTypeConverter(r.scheme) })
	return r, nil
}

// UseStore binds the store. It must be called before any other method but the
// ones that describe the table, when Config carried none.
func (r *Registry) UseStore(s *store.Store) { r.store, r.write, r.read = s, s.Update, s.Get }

func (r *Registry) buildTable() error {
	for _, res := range r.resources {
		name := resourceName{res.Group, res.Version, res.Plural}
		if r.byName[name] != nil {
			return fmt.Errorf("resource %s.%s/%s is in the table twice", res.Plural, res.Group, res.Version)
		}
		e := newEntry(res)
		r.entries[res], r.byName[name] = e, e
	}
	for _, e := range r.entries {
		if e.Stored == nil {
			continue
		}
		target := r.lookupFull(e.Stored.Resource)
		if target == nil || target.Stored != nil {
			return fmt.Errorf("resource %s/%s is stored as unknown %q", e.gr, e.Version, e.Stored.Resource)
		}
		e.storage, e.prefix = target, target.prefix
	}
	return nil
}

func newEntry(res *Resource) *entry {
	e := &entry{Resource: res, gvk: res.GVK(), gr: res.GroupResource(), views: make(map[string]*Subresource, len(res.Subresources))}
	e.apiVersion = e.gvk.GroupVersion().String()
	e.prefix = e.gr.String() + "/"
	e.storage = e
	if res.New != nil {
		e.goType = reflect.TypeOf(res.New()).Elem()
	}
	for _, sub := range res.Subresources {
		e.views[sub.Name] = sub
	}
	_, e.hasStatus = e.views["status"]
	return e
}

// lookupFull finds an entry by its full name, "pods/v1" or "deployments.apps/v1".
func (r *Registry) lookupFull(full string) *entry {
	resource, version, _ := strings.Cut(full, "/")
	plural, group, _ := strings.Cut(resource, ".")
	return r.byName[resourceName{group, version, plural}]
}

func (r *Registry) buildScheme() error {
	r.scheme = runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, apiextensionsv1.AddToScheme, metav1.AddMetaToScheme, autoscalingv1.AddToScheme,
	} {
		if err := add(r.scheme); err != nil {
			return fmt.Errorf("build scheme: %w", err)
		}
	}
	return nil
}

// StoreCodec is what the store must be given to hold this registry's objects.
func (r *Registry) StoreCodec() store.Codec { return r.codec }

// Resources gives the entries in table order.
func (r *Registry) Resources() []*Resource { return r.resources }

// Lookup finds an entry; nil when there is none.
func (r *Registry) Lookup(group, version, plural string) *Resource {
	if e := r.byName[resourceName{group, version, plural}]; e != nil {
		return e.Resource
	}
	return nil
}

// Scheme knows the Go types of the table and of everything client-go knows.
func (r *Registry) Scheme() *runtime.Scheme { return r.scheme }

// entryOf panics for a Resource that is not in the table: a broken invariant of the caller.
func (r *Registry) entryOf(res *Resource) *entry {
	e := r.entries[res]
	if e == nil {
		panic(fmt.Sprintf("registry: %s.%s/%s is not in the table", res.Plural, res.Group, res.Version))
	}
	return e
}

// key is where an object lives in the store.
func (e *entry) key(ns, name string) string {
	if e.Namespaced {
		return e.prefix + ns + "/" + name
	}
	return e.prefix + name
}

// root is the prefix of the keys of one namespace, or of all objects.
func (e *entry) root(ns string) string {
	if e.Namespaced && ns != "" {
		return e.prefix + ns + "/"
	}
	return e.prefix
}

// serve turns a stored object into this entry's form.
func (e *entry) serve(obj Object) (Object, error) {
	if e.Stored == nil {
		return obj, nil
	}
	out, err := e.Stored.From(obj)
	if err != nil {
		return nil, fmt.Errorf("convert %s to %s: %w", e.storage.gvk, e.gvk, err)
	}
	e.setKind(out)
	out.SetResourceVersion(obj.GetResourceVersion())
	return out, nil
}

// keep turns an object of this entry's form into the stored one.
func (e *entry) keep(obj Object) (Object, error) {
	if e.Stored == nil {
		return obj, nil
	}
	out, err := e.Stored.To(obj)
	if err != nil {
		return nil, fmt.Errorf("convert %s to %s: %w", e.gvk, e.storage.gvk, err)
	}
	e.storage.setKind(out)
	return out, nil
}

// setKind writes apiVersion and kind, without allocating for Go types.
func (e *entry) setKind(obj Object) {
	if tm, ok := obj.GetObjectKind().(*metav1.TypeMeta); ok {
		tm.APIVersion, tm.Kind = e.apiVersion, e.Kind
		return
	}
	obj.GetObjectKind().SetGroupVersionKind(e.gvk)
}
