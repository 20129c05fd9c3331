package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
)

// Reasons of the Progressing condition.
const (
	reasonPaused    = "DeploymentPaused"
	reasonResumed   = "DeploymentResumed"
	reasonCreated   = "NewReplicaSetCreated"
	reasonFound     = "FoundNewReplicaSet"
	reasonUpdated   = "ReplicaSetUpdated"
	reasonAvailable = "NewReplicaSetAvailable"
	reasonTimedOut  = "ProgressDeadlineExceeded"
	reasonRefused   = "ReplicaSetCreateError"
)

// statusOf counts the sets and sets the Available and ReplicaFailure conditions;
// other conditions are carried over.
func statusOf(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	current, _ := split(d, sets)
	status := *d.Status.DeepCopy()
	status.ObservedGeneration = max(d.Generation, d.Status.ObservedGeneration)
	status.Replicas, status.ReadyReplicas, status.AvailableReplicas, status.UpdatedReplicas = 0, 0, 0, 0
	terminating := int32(0)
	for _, rs := range sets {
		status.Replicas += rs.Status.Replicas
		status.ReadyReplicas += rs.Status.ReadyReplicas
		status.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		}
	}
	status.TerminatingReplicas = &terminating
	if current != nil {
		status.UpdatedReplicas = current.Status.Replicas
	}
	status.UnavailableReplicas = max(0, total(sets)-status.AvailableReplicas)
	_, unavailable := bounds(d)
	if status.AvailableReplicas >= *d.Spec.Replicas-unavailable {
		setCondition(&status, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
	} else {
		setCondition(&status, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", now)
	}
	if c := failureOf(current, sets); c != nil {
		setCondition(&status, appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message, c.LastTransitionTime.Time)
	} else {
		dropCondition(&status, appsv1.DeploymentReplicaFailure)
	}
	return status
}

// failureOf gives the failure of a set, that of the current one before others.
func failureOf(current *appsv1.ReplicaSet, sets []*appsv1.ReplicaSet) *appsv1.ReplicaSetCondition {
	if current != nil {
		sets = append([]*appsv1.ReplicaSet{current}, sets...)
	}
	for _, rs := range sets {
		for i := range rs.Status.Conditions {
			if rs.Status.Conditions[i].Type == appsv1.ReplicaSetReplicaFailure {
				return &rs.Status.Conditions[i]
			}
		}
	}
	return nil
}

// hasDeadline tells whether progress is watched at all.
func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// withFailure tells that the new set could not be made.
func withFailure(d *appsv1.Deployment, status appsv1.DeploymentStatus, name string, failure error, now time.Time) appsv1.DeploymentStatus {
	if hasDeadline(d) {
		setCondition(&status, appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonRefused,
			fmt.Sprintf("Failed to create new replica set %q: %v", name, failure), now)
	}
	return status
}

// complete tells whether the rollout has reached its end.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == *d.Spec.Replicas && s.Replicas == *d.Spec.Replicas && s.AvailableReplicas == *d.Spec.Replicas
}

// pause tells of a pause and of its end, so that time spent paused does not
// count against the deadline.
func (plan *Plan) pause(now time.Time, d *appsv1.Deployment) {
	c := findCondition(&d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c != nil && c.Reason == reasonTimedOut {
		return
	}
	paused := c != nil && c.Reason == reasonPaused
	switch {
	case d.Spec.Paused && !paused:
		setCondition(&plan.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", now)
	case !d.Spec.Paused && paused:
		setCondition(&plan.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", now)
	}
}

// progress keeps the Progressing condition of a rollout, with its deadline.
func (plan *Plan) progress(now time.Time, d *appsv1.Deployment, current *appsv1.ReplicaSet) {
	s := &plan.Status
	if !hasDeadline(d) {
		dropCondition(s, appsv1.DeploymentProgressing)
		return
	}
	set := func(status corev1.ConditionStatus, reason, format string, args ...any) {
		setCondition(s, appsv1.DeploymentProgressing, status, reason, fmt.Sprintf(format, args...), now)
	}
	subject, name := "Deployment", d.Name
	if current != nil {
		subject, name = "ReplicaSet", current.Name
	}
	was := findCondition(&d.Status, appsv1.DeploymentProgressing)
	switch {
	case plan.Create != nil:
		set(corev1.ConditionTrue, reasonCreated, "Created new replica set %q", plan.Create.Name)
	case was == nil && current != nil:
		set(corev1.ConditionTrue, reasonFound, "Found new replica set %q", current.Name)
	case was != nil && was.Reason == reasonAvailable && s.Replicas == s.UpdatedReplicas:
		// The rollout has ended; pods that were lost since begin no new one.
	case complete(d, s):
		set(corev1.ConditionTrue, reasonAvailable, "%s %q has successfully progressed.", subject, name)
	case progressing(&d.Status, s):
		// Progress again is news although the reason is the same.
		c := findCondition(s, appsv1.DeploymentProgressing)
		if c != nil && c.Reason == reasonUpdated {
			c.LastUpdateTime = metav1.NewTime(now).Rfc3339Copy()
		}
		set(corev1.ConditionTrue, reasonUpdated, "%s %q is progressing.", subject, name)
	default:
		plan.checkDeadline(now, d, func() { set(corev1.ConditionFalse, reasonTimedOut, "%s %q has timed out progressing.", subject, name) })
	}
	plan.watchDeadline(now, d)
}

// checkDeadline calls timedOut when there was no progress for too long.
func (plan *Plan) checkDeadline(now time.Time, d *appsv1.Deployment, timedOut func()) {
	c := findCondition(&plan.Status, appsv1.DeploymentProgressing)
	if c == nil || c.Reason == reasonAvailable || c.Reason == reasonTimedOut {
		return
	}
	if deadline(d, c).Before(now) {
		timedOut()
	}
}

func deadline(d *appsv1.Deployment, c *appsv1.DeploymentCondition) time.Time {
	return c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second)
}

// watchDeadline comes back when the deadline will have passed.
func (plan *Plan) watchDeadline(now time.Time, d *appsv1.Deployment) {
	c := findCondition(&plan.Status, appsv1.DeploymentProgressing)
	if c == nil || c.Reason == reasonTimedOut || c.Reason == reasonAvailable || complete(d, &plan.Status) {
		return
	}
	plan.Again = children.Soonest(plan.Again, max(deadline(d, c).Sub(now), 0)+time.Second)
}

// progressing tells whether the figures have moved in the right direction.
func progressing(old, now *appsv1.DeploymentStatus) bool {
	oldSurplus, newSurplus := old.Replicas-old.UpdatedReplicas, now.Replicas-now.UpdatedReplicas
	return now.UpdatedReplicas > old.UpdatedReplicas || newSurplus < oldSurplus ||
		now.ReadyReplicas > old.ReadyReplicas || now.AvailableReplicas > old.AvailableReplicas
}

func findCondition(s *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func dropCondition(s *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == kind })
}

// setCondition replaces a condition whose status or reason is another; the time
// of transition moves with the status only.
func setCondition(s *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) {
	stamp := metav1.NewTime(now).Rfc3339Copy()
	if c := findCondition(s, kind); c != nil {
		if c.Status == status && c.Reason == reason {
			return
		}
		if c.Status != status {
			c.LastTransitionTime = stamp
		}
		c.Status, c.Reason, c.Message, c.LastUpdateTime = status, reason, message, stamp
		return
	}
	s.Conditions = append(s.Conditions, appsv1.DeploymentCondition{
		Type: kind, Status: status, Reason: reason, Message: message, LastUpdateTime: stamp, LastTransitionTime: stamp,
	})
}
