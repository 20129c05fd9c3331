package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
)

// scalingOnly tells whether the number of replicas has changed since the sets
// were last scaled. That is dealt with before a rollout goes on.
func scalingOnly(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) bool {
	return slices.ContainsFunc(active(sets), func(rs *appsv1.ReplicaSet) bool {
		desired, err := strconv.Atoi(rs.Annotations[desiredAnnotation])
		return err == nil && int32(desired) != *d.Spec.Replicas
	})
}

// proportional spreads a changed number of replicas over all active sets, in
// proportion to their sizes, so that a rollout that is under way or paused is
// not undone by scaling.
func (plan *Plan) proportional(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	all := slices.Clone(old)
	if current != nil {
		all = append(all, current)
	}
	sets := active(all)
	switch {
	case len(all) == 0:
	case len(sets) == 0:
		plan.scaleTo(all[len(all)-1], *d.Spec.Replicas) // the current set, else the newest
	case len(sets) == 1:
		plan.scaleTo(sets[0], *d.Spec.Replicas)
	case saturated(d, current):
		plan.scaleDownAll(old)
	case d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType:
		plan.spread(d, sets)
	}
}

// saturated tells whether the current set has all the pods that are wanted.
func saturated(d *appsv1.Deployment, current *appsv1.ReplicaSet) bool {
	want := *d.Spec.Replicas
	return current != nil && *current.Spec.Replicas == want && current.Status.AvailableReplicas == want &&
		current.Annotations[desiredAnnotation] == strconv.Itoa(int(want))
}

func (plan *Plan) spread(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) {
	allowed := int32(0)
	if *d.Spec.Replicas > 0 {
		allowed = *d.Spec.Replicas + surge(d)
	}
	missing := allowed - total(sets)
	// The largest set gets what rounding leaves over; of equal ones the newest
	// grows and the oldest shrinks.
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		age := a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		if missing > 0 {
			age = -age
		}
		return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), age)
	})
	added := int32(0)
	want := make([]int32, len(sets))
	for i, rs := range sets {
		share := share(d, rs, missing, added)
		want[i] = *rs.Spec.Replicas + share
		added += share
	}
	want[0] = max(0, want[0]+missing-added)
	for i, rs := range sets {
		// A set that keeps its size is told of the new total all the same.
		annotated := rs.DeepCopy()
		setReplicasAnnotations(d, annotated)
		if want[i] != *rs.Spec.Replicas || annotated.Annotations[desiredAnnotation] != rs.Annotations[desiredAnnotation] ||
			annotated.Annotations[maxReplicasAnnotation] != rs.Annotations[maxReplicasAnnotation] {
			plan.Scale = append(plan.Scale, Scaling{rs, want[i]})
		}
	}
}

// share is a set's part of the replicas that are missing, or too many when that
// is negative.
func share(d *appsv1.Deployment, rs *appsv1.ReplicaSet, missing, added int32) int32 {
	if missing == added {
		return 0
	}
	part := growth(d, rs)
	if missing > 0 {
		return min(part, missing-added)
	}
	return max(part, missing-added)
}

// growth is by how much a set would change if it kept its part of the whole.
func growth(d *appsv1.Deployment, rs *appsv1.ReplicaSet) int32 {
	if *d.Spec.Replicas == 0 {
		return -*rs.Spec.Replicas
	}
	before, err := strconv.ParseInt(rs.Annotations[maxReplicasAnnotation], 10, 32)
	if err != nil || before == 0 {
		if before = int64(d.Status.Replicas); before == 0 {
			return 0
		}
	}
	size := float64(*rs.Spec.Replicas) * float64(*d.Spec.Replicas+surge(d)) / float64(before)
	return int32(math.Round(size)) - *rs.Spec.Replicas
}
