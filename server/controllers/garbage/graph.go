// Package garbage deletes what nobody owns any more: objects whose owners are
// gone (background, foreground and orphan), finished jobs past their time to
// live, and pods that nothing will ever finish.
package garbage

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/registry"
)

// object names an object in the graph.
type object struct {
	resource  *registry.Resource
	namespace string
	name      string
	uid       types.UID
}

// graph knows who depends on whom, by the owners' UIDs. It is kept up to date
// by the events of all resources.
type graph struct {
	mu         sync.Mutex
	dependents map[types.UID]map[types.UID]object
	owners     map[types.UID][]types.UID // of each dependent, to undo its edges
}

func newGraph() *graph {
	return &graph{dependents: map[types.UID]map[types.UID]object{}, owners: map[types.UID][]types.UID{}}
}

// set records the owners of o in place of what was known, which it gives back.
func (g *graph) set(o object, refs []metav1.OwnerReference) (former []types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	former = g.removeLocked(o.uid)
	if len(refs) == 0 {
		return former
	}
	owners := make([]types.UID, len(refs))
	for i, ref := range refs {
		owners[i] = ref.UID
		if g.dependents[ref.UID] == nil {
			g.dependents[ref.UID] = map[types.UID]object{}
		}
		g.dependents[ref.UID][o.uid] = o
	}
	g.owners[o.uid] = owners
	return former
}

// remove forgets a dependent and gives the owners that it had.
func (g *graph) remove(uid types.UID) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.removeLocked(uid)
}

func (g *graph) removeLocked(uid types.UID) []types.UID {
	owners := g.owners[uid]
	for _, owner := range owners {
		delete(g.dependents[owner], uid)
		if len(g.dependents[owner]) == 0 {
			delete(g.dependents, owner)
		}
	}
	delete(g.owners, uid)
	return owners
}

func (g *graph) dependentsOf(uid types.UID) []object {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]object, 0, len(g.dependents[uid]))
	for _, o := range g.dependents[uid] {
		out = append(out, o)
	}
	return out
}
