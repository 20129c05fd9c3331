package registry

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Index groups the objects of one resource by keys derived from them (pods by
// node, replica sets by owner). Run keeps it up to date; reads are safe from
// any goroutine and never wait.
type Index[T Object] struct {
	source Typed[T]
	keys   func(obj T) []string
	synced chan struct{}

	mu    sync.RWMutex
	byKey map[string]map[string]T // key, then namespace/name
}

// NewIndex makes an index; keys may give none or several.
func NewIndex[T Object](r *Registry, keys func(obj T) []string) *Index[T] {
	return &Index[T]{source: Of[T](r), keys: keys, synced: make(chan struct{}), byKey: make(map[string]map[string]T)}
}

// Run follows the resource until ctx ends. changed (may be nil) hears of each
// key whose group changed, after the index shows it.
func (x *Index[T]) Run(ctx context.Context, changed func(key string)) error {
	return x.source.Watch(ctx, func(old, obj T, deleted bool) {
		for _, key := range x.move(old, obj, deleted) {
			if changed != nil {
				changed(key)
			}
		}
	}, func() { close(x.synced) })
}

// Synced is closed once the index holds the objects there were at its start.
func (x *Index[T]) Synced() <-chan struct{} { return x.synced }

// Get gives the objects under key in order of namespace and name; they are shared.
func (x *Index[T]) Get(key string) []T {
	x.mu.RLock()
	defer x.mu.RUnlock()
	group := x.byKey[key]
	out := make([]T, 0, len(group))
	for _, name := range slices.SortedFunc(maps.Keys(group), strings.Compare) {
		out = append(out, group[name])
	}
	return out
}

// Len is how many objects are under key.
func (x *Index[T]) Len(key string) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byKey[key])
}

// move takes obj out of its old groups and into its new ones; it gives the keys
// of all of them.
func (x *Index[T]) move(old, obj T, deleted bool) []string {
	name := obj.GetNamespace() + "/" + obj.GetName()
	var before, after []string
	if any(old) != any(*new(T)) {
		before = x.keys(old)
	} else if deleted {
		before = x.keys(obj)
	}
	if !deleted {
		after = x.keys(obj)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, key := range before {
		delete(x.byKey[key], name)
		if len(x.byKey[key]) == 0 {
			delete(x.byKey, key)
		}
	}
	for _, key := range after {
		if x.byKey[key] == nil {
			x.byKey[key] = make(map[string]T)
		}
		x.byKey[key][name] = obj
	}
	for _, key := range after {
		if !slices.Contains(before, key) {
			before = append(before, key)
		}
	}
	return before
}
