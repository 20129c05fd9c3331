package endpoints

import (
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"orch/internal/fanout"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// pace knows when services last got an endpoint. Every node hears of each change
// of a service's endpoints: while a deployment of thirty starts, thirty changes
// would cost thirty times the nodes. So further endpoints wait for each other, the
// longer the more nodes there are. The first one waits for nobody, and nothing
// that is to get no more traffic waits.
type pace struct {
	nodes registry.Typed[*corev1.Node]

	mu     sync.Mutex
	gained map[loop.Key]time.Time // guarded by mu
}

func newPace(r *registry.Registry) *pace {
	return &pace{nodes: registry.Of[*corev1.Node](r), gained: make(map[loop.Key]time.Time)}
}

// hold is how long a change at now must wait, which may only add endpoints and
// may leave some that are ready. With 0, it is taken to happen.
func (p *pace) hold(service loop.Key, now time.Time, onlyAdds, ready bool) time.Duration {
	var wait time.Duration
	if onlyAdds {
		wait = fanout.Rest(len(p.nodes.List("", nil)))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := max(0, p.gained[service].Add(wait).Sub(now))
	if left == 0 && ready {
		p.gained[service] = now
	}
	return left
}

func (p *pace) forget(service loop.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.gained, service)
}

// gains tells whether there are ready endpoints in what the plan writes.
func (plan *Plan) gains() bool {
	return slices.ContainsFunc(slices.Concat(plan.Create, plan.Update), func(s *discoveryv1.EndpointSlice) bool {
		return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return *e.Conditions.Ready })
	})
}

// onlyAdds tells whether all that the plan changes is that there are more
// endpoints than in the existing slices, or more of them are ready.
func (plan *Plan) onlyAdds(existing []*discoveryv1.EndpointSlice) bool {
	if len(plan.Delete) > 0 || len(existing) == 0 || len(plan.Create)+len(plan.Update) == 0 {
		return false
	}
	for _, after := range plan.Update {
		i := slices.IndexFunc(existing, func(s *discoveryv1.EndpointSlice) bool { return s.Name == after.Name })
		if i < 0 || !sliceGrew(existing[i], after) {
			return false
		}
	}
	return true
}

func sliceGrew(before, after *discoveryv1.EndpointSlice) bool {
	same := *after
	same.Endpoints = before.Endpoints
	if !sameSlice(before, &same) {
		return false
	}
	// Endpoints keep their order in a slice, and new ones come last.
	if len(after.Endpoints) < len(before.Endpoints) {
		return false
	}
	for i := range before.Endpoints {
		if !endpointGrew(&before.Endpoints[i], &after.Endpoints[i]) {
			return false
		}
	}
	return true
}

// endpointGrew tells whether nothing about an endpoint changed but that it is
// ready now. Others may have written what it was before.
func endpointGrew(before, after *discoveryv1.Endpoint) bool {
	same := *after
	if was := before.Conditions.Ready; was != nil && !*was && *after.Conditions.Ready {
		same.Conditions = before.Conditions
	}
	return reflect.DeepEqual(*before, same)
}
