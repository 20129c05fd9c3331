package daemonset

import (
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"orch/server/controllers/children"
)

// roll is one step of a rolling update.
func (plan *Plan) roll(sc *scene) {
	desired := 0
	for _, n := range sc.Nodes {
		if should, _ := sc.fit.node(n); should {
			desired++
			if _, ok := sc.pods[n.Name]; !ok {
				sc.pods[n.Name] = nil
			}
		}
	}
	surge, unavailable := bounds(sc.Set, desired)
	if desired > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1 // or nothing would ever move
	}
	if surge > 0 {
		plan.surge(sc, surge, desired)
		return
	}
	plan.replace(sc, unavailable)
}

// pair gives a node's new and old pod; false while there are more of a sort.
func (sc *scene) pair(node string) (fresh, old *corev1.Pod, ok bool) {
	for _, p := range sc.pods[node] {
		switch {
		case p.DeletionTimestamp != nil:
		case sc.updated(p):
			if fresh != nil {
				return nil, nil, false
			}
			fresh = p
		default:
			if old != nil {
				return nil, nil, false
			}
			old = p
		}
	}
	return fresh, old, true
}

// replace deletes old pods, as many as may be unavailable; those that are so
// already cost nothing.
func (plan *Plan) replace(sc *scene, allowed int) {
	var candidates []Deletion
	for _, node := range slices.Sorted(maps.Keys(sc.pods)) {
		fresh, old, ok := sc.pair(node)
		switch {
		case !ok, (fresh == nil) == (old == nil):
			allowed--
		case fresh != nil:
			if !plan.available(sc, fresh) {
				allowed--
			}
		case !plan.available(sc, old):
			plan.remove(old, node)
			allowed--
		default:
			candidates = append(candidates, Deletion{old, node})
		}
	}
	plan.Delete = append(plan.Delete, candidates[:min(max(allowed, 0), len(candidates))]...)
}

// surge makes new pods beside the old ones, as many as maxSurge allows, and
// deletes old ones whose successor is available.
func (plan *Plan) surge(sc *scene, allowed, desired int) {
	var candidates []string
	var sunset []Deletion // available old pods on nodes that should not run any
	available := 0
	for _, node := range slices.Sorted(maps.Keys(sc.pods)) {
		fresh, old, ok := sc.pair(node)
		if !ok {
			allowed--
			continue
		}
		first := old
		if first == nil {
			first = fresh
		}
		firstAvailable := first != nil && plan.available(sc, first)
		if firstAvailable {
			available++
		}
		if old == nil {
			continue
		}
		if fresh != nil {
			if plan.available(sc, fresh) {
				plan.remove(old, node)
			} else {
				allowed--
			}
			continue
		}
		should := false
		if n := sc.node[node]; n != nil {
			should, _ = sc.fit.node(n)
		}
		switch {
		case !firstAvailable && !should:
			plan.remove(old, node)
		case !firstAvailable:
			plan.Create = append(plan.Create, node)
		case !should:
			sunset = append(sunset, Deletion{old, node})
		default:
			candidates = append(candidates, node)
		}
	}
	plan.Delete = append(plan.Delete, sunset[:min(max(available-desired, 0), len(sunset))]...)
	plan.Create = append(plan.Create, candidates[:min(max(allowed, 0), len(candidates))]...)
}

// StatusOf counts the pods of a set. again is when one that is ready will have
// been so for long enough.
func StatusOf(now time.Time, s Snapshot) (status appsv1.DaemonSetStatus, again time.Duration) {
	sc := newScene(now, s)
	for _, n := range s.Nodes {
		should, _ := sc.fit.node(n)
		pods := sc.pods[n.Name]
		switch {
		case !should && len(pods) > 0:
			status.NumberMisscheduled++
		case should:
			status.DesiredNumberScheduled++
		}
		if !should || len(pods) == 0 {
			continue
		}
		status.CurrentNumberScheduled++
		first := pods[0]
		if children.Ready(first) {
			status.NumberReady++
			ok, wait := children.Available(first, s.Set.Spec.MinReadySeconds, now)
			if ok {
				status.NumberAvailable++
			}
			again = children.Soonest(again, wait)
		}
		if sc.updated(first) {
			status.UpdatedNumberScheduled++
		}
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	return status, again
}
