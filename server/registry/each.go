package registry

import "context"

// Each is Typed.Watch for code that treats all resources alike.
func (r *Registry) Each(ctx context.Context, res *Resource, fn func(old, obj Object, deleted bool), synced func()) error {
	return Typed[Object]{r, res}.Watch(ctx, fn, synced)
}
