package deployment

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (plan *Plan) scaleTo(rs *appsv1.ReplicaSet, replicas int32) bool {
	if *rs.Spec.Replicas == replicas {
		return false
	}
	plan.Scale = append(plan.Scale, Scaling{rs, replicas})
	return true
}

func (plan *Plan) scaleDownAll(old []*appsv1.ReplicaSet) (changed bool) {
	for _, rs := range old {
		changed = plan.scaleTo(rs, 0) || changed
	}
	return changed
}

// surge is how many pods there may be beyond those wanted.
func surge(d *appsv1.Deployment) int32 {
	s, _ := bounds(d)
	return s
}

// bounds resolves maxSurge (rounded up) and maxUnavailable (rounded down); both
// cannot be 0, or nothing would ever move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || r == nil {
		return 0, 0
	}
	want := int(*d.Spec.Replicas)
	s, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxSurge, intstr.FromInt32(0)), want, true)
	u, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(0)), want, false)
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), int32(min(u, want))
}

func total(sets []*appsv1.ReplicaSet) (replicas int32) {
	for _, rs := range sets {
		replicas += *rs.Spec.Replicas
	}
	return replicas
}

// newReplicas is how many replicas the current set may have now.
func newReplicas(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) int32 {
	want := *d.Spec.Replicas
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want
	}
	have := int32(0)
	if current != nil {
		have = *current.Spec.Replicas
	}
	room := want + surge(d) - total(old) - have
	if room <= 0 {
		return have
	}
	return have + min(room, want-have)
}

// recreate is one step of an update that stops all old pods before it starts
// the first new one.
func (plan *Plan) recreate(s Snapshot, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	switch {
	case plan.scaleDownAll(old), s.OldPods(old):
	case current == nil:
		plan.create(s.Deployment, old)
	default:
		plan.scaleTo(current, *s.Deployment.Spec.Replicas)
	}
}

// roll is one step of a rolling update.
func (plan *Plan) roll(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	want := min(*d.Spec.Replicas, max(*current.Spec.Replicas, newReplicas(d, current, old)))
	if !plan.scaleTo(current, want) {
		plan.shrinkOld(d, current, old)
	}
}

// shrinkOld takes replicas from old sets as far as maxUnavailable allows,
// unhealthy ones first.
func (plan *Plan) shrinkOld(d *appsv1.Deployment, current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	if total(old) == 0 {
		return
	}
	_, unavailable := bounds(d)
	minAvailable := *d.Spec.Replicas - unavailable
	// New pods that are not available must not be made up for by old ones' end.
	room := total(old) + *current.Spec.Replicas - minAvailable - (*current.Spec.Replicas - current.Status.AvailableReplicas)
	if room <= 0 {
		return
	}
	want := make(map[*appsv1.ReplicaSet]int32, len(old))
	available := current.Status.AvailableReplicas
	for _, rs := range old {
		sick := min(max(*rs.Spec.Replicas-rs.Status.AvailableReplicas, 0), room)
		want[rs] = *rs.Spec.Replicas - sick
		room -= sick
		available += min(rs.Status.AvailableReplicas, want[rs])
	}
	spare := max(available-minAvailable, 0)
	for _, rs := range old {
		take := min(want[rs], spare)
		spare -= take
		plan.scaleTo(rs, want[rs]-take)
	}
}

// active gives the sets that have, or ought to have, pods.
func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(sets), func(rs *appsv1.ReplicaSet) bool { return *rs.Spec.Replicas == 0 })
}
