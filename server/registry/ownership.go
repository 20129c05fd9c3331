package registry

import (
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxUpdateManagers is how many updaters managedFields keep apart.
const maxUpdateManagers = 10

// unownedFields are never recorded: identity and what the server sets.
var unownedFields = func() *fieldTree {
	t, err := parseFieldsV1(`{"f:apiVersion":{},"f:kind":{},"f:metadata":{".":{},"f:clusterName":{},"f:creationTimestamp":{},"f:generation":{},` +
		`"f:managedFields":{},"f:name":{},"f:namespace":{},"f:resourceVersion":{},"f:selfLink":{},"f:uid":{}}}`)
	if err != nil {
		panic(err)
	}
	return t
}()

// own is what a field manager's Update does (KEP-555): all that differs between
// old and obj goes to manager and is taken from everybody else. It gives false
// when the general field manager has to do it.
func (r *Registry) own(e *entry, subresource string, obj, old Object, manager string) bool {
	plan := r.managers.plans.of(e.goType)
	entries, plain := startingOwners(subresource, obj, old)
	if !plain {
		return false
	}
	created := old.GetUID() == ""
	if len(entries) == 0 && !created { // nobody tracked this object, so nobody starts now
		obj.SetManagedFields(nil)
		return true
	}
	changed, removed, ok := diffFields(plan, old, obj)
	if !ok {
		return false
	}
	changed, removed = e.writable(subresource, changed), e.writable(subresource, removed)
	if changed == nil && removed == nil {
		obj.SetManagedFields(entries)
		return true
	}
	// The time is on its own: the object keeps a pointer to it, which inside of
	// ownerUpdate would keep that and all its trees as well.
	now := metav1.Unix(r.now().Unix(), 0)
	w := ownerUpdate{entries: entries, changed: changed, removed: removed, fields: &r.managers.fields,
		self: metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: e.apiVersion, FieldsType: "FieldsV1", Subresource: subresource, Time: &now}}
	owners, ok := w.run()
	if !ok {
		return false
	}
	obj.SetManagedFields(owners)
	return true
}

// startingOwners are the entries to begin with: those in the request, unless it
// left them out or writes a subresource; an empty one asks to forget all.
// plain is false for what needs the general field manager's judgement.
func startingOwners(subresource string, obj, old Object) (entries []metav1.ManagedFieldsEntry, plain bool) {
	given, live := obj.GetManagedFields(), old.GetManagedFields()
	if subresource != "" || len(given) == 0 && given == nil || sameOwners(given, live) {
		return live, true
	}
	if len(given) == 0 || len(given) == 1 && given[0].Manager == "" && given[0].FieldsV1 == nil && given[0].Operation == "" {
		return nil, true
	}
	return nil, false
}

func sameOwners(a, b []metav1.ManagedFieldsEntry) bool {
	return slices.EqualFunc(a, b, func(x, y metav1.ManagedFieldsEntry) bool {
		return sameOwner(&x, &y) && x.FieldsType == y.FieldsType && x.Time.Equal(y.Time) && x.FieldsV1 != nil && y.FieldsV1 != nil && x.FieldsV1.Equal(*y.FieldsV1)
	})
}

// sameOwner tells whether two entries are of one manager, operation and place.
func sameOwner(a, b *metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.Subresource == b.Subresource &&
		(a.APIVersion == b.APIVersion || a.Operation == metav1.ManagedFieldsOperationApply)
}

// writable drops the fields that a write through subresource resets.
func (e *entry) writable(subresource string, t *fieldTree) *fieldTree {
	switch {
	case subresource == "" && e.hasStatus:
		return t.drop("f:status")
	case subresource == "status":
		return t.drop("f:spec")
	}
	return t
}

// ownerUpdate moves ownership of changed to self.
type ownerUpdate struct {
	entries          []metav1.ManagedFieldsEntry // shared
	self             metav1.ManagedFieldsEntry
	changed, removed *fieldTree
	fields           *fieldSets
}

func (w *ownerUpdate) run() ([]metav1.ManagedFieldsEntry, bool) {
	if w.self.Manager == "" {
		w.self.Manager = "unknown"
	}
	out := make([]metav1.ManagedFieldsEntry, 0, len(w.entries)+1)
	mine := w.changed.without(unownedFields)
	updaters := 0
	for i := range w.entries {
		entry := w.entries[i]
		if entry.FieldsType != "FieldsV1" || entry.FieldsV1 == nil || entry.APIVersion != w.self.APIVersion {
			return nil, false
		}
		had, err := w.fields.parse(entry.FieldsV1.GetRawBytes())
		if err != nil {
			return nil, false
		}
		left := had.without(w.changed).without(w.removed)
		if mine != nil && sameOwner(&entry, &w.self) {
			mine = mine.union(left)
			continue
		}
		if left == nil {
			continue
		}
		if left != had {
			entry.FieldsV1 = w.fields.encode(left)
		}
		if entry.Operation == metav1.ManagedFieldsOperationUpdate {
			updaters++
		}
		out = append(out, entry)
	}
	if mine != nil {
		w.self.FieldsV1 = w.fields.encode(mine)
		out, updaters = append(out, w.self), updaters+1
	}
	if updaters > maxUpdateManagers {
		return nil, false
	}
	slices.SortStableFunc(out, compareOwners)
	return out, true
}

// fieldSets shares equal field sets between objects: those of one workload own
// the same fields, and a set is as large as the rest of a small object, and as
// costly to parse. What it gives out is immutable.
type fieldSets struct {
	mu    sync.Mutex
	known map[string]fieldSet // by their JSON; guarded by mu
}

// fieldSet is a set in both of its forms.
type fieldSet struct {
	encoded *metav1.FieldsV1
	tree    *fieldTree
}

// What is remembered is bounded in number, beyond which it begins anew, and each
// set in size: large ones are seldom alike.
const (
	maxFieldSets    = 500
	maxFieldSetSize = 8 << 10
)

func (s *fieldSets) encode(t *fieldTree) *metav1.FieldsV1 {
	var space [1024]byte
	raw := t.appendJSON(space[:0])
	s.mu.Lock()
	defer s.mu.Unlock()
	if set, ok := s.known[string(raw)]; ok {
		return set.encoded
	}
	return s.remember(string(raw), t).encoded
}

func (s *fieldSets) parse(encoded []byte) (*fieldTree, error) {
	s.mu.Lock()
	set, ok := s.known[string(encoded)]
	s.mu.Unlock()
	if ok {
		return set.tree, nil
	}
	raw := string(encoded)
	t, err := parseFieldsV1(raw)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remember(raw, t).tree, nil
}

// remember is called with mu held.
func (s *fieldSets) remember(raw string, t *fieldTree) fieldSet {
	if s.known == nil || len(s.known) >= maxFieldSets {
		s.known = make(map[string]fieldSet)
	}
	set := fieldSet{encoded: &metav1.FieldsV1{}, tree: t}
	set.encoded.SetRawString(raw)
	if len(raw) <= maxFieldSetSize {
		s.known[raw] = set
	}
	return set
}

// compareOwners is the order in which managedFields are kept.
func compareOwners(a, b metav1.ManagedFieldsEntry) int {
	if c := strings.Compare(string(a.Operation), string(b.Operation)); c != 0 {
		return c
	}
	if c := unixOf(a.Time) - unixOf(b.Time); c != 0 {
		return int(max(-1, min(1, c)))
	}
	if c := strings.Compare(a.Manager, b.Manager); c != 0 {
		return c
	}
	if c := strings.Compare(a.APIVersion, b.APIVersion); c != 0 {
		return c
	}
	return strings.Compare(a.Subresource, b.Subresource)
}

func unixOf(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Time.Truncate(time.Second).Unix()
}
