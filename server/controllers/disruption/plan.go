package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/children"
)

// deletionTimeout is how long an evicted pod may take to be marked for deletion
// before it counts as staying.
const deletionTimeout = 2 * time.Minute

// Scale is how many pods a controller should have.
type Scale struct {
	UID      types.UID
	Replicas int32
}

// Snapshot is what one look at a budget sees.
type Snapshot struct {
	Budget *policyv1.PodDisruptionBudget
	Pods   []*corev1.Pod // those it selects
	// Scale gives the scale of a pod's controller; known is false when that has
	// gone, an error means that the kind has none.
	Scale func(namespace string, ref *metav1.OwnerReference) (scale Scale, known bool, err error)
}

// Plan is the status that the budget should have.
type Plan struct {
	Status     policyv1.PodDisruptionBudgetStatus
	Events     []Event
	NotDeleted []*corev1.Pod // evicted, but nobody deleted them
	Again      time.Duration
}

// Event is one that the budget gets.
type Event struct{ Type, Reason, Message string }

func (plan *Plan) say(kind, reason, format string, args ...any) {
	plan.Events = append(plan.Events, Event{kind, reason, fmt.Sprintf(format, args...)})
}

// Reconcile computes the status. When the number of expected pods cannot be
// found out, nothing may be disrupted.
func Reconcile(now time.Time, s Snapshot) Plan {
	var plan Plan
	plan.Status = *s.Budget.Status.DeepCopy()
	if len(s.Pods) == 0 {
		plan.say(corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	expected, desired, err := plan.expect(s)
	if err != nil {
		plan.say(corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		plan.Status.DisruptionsAllowed = 0
		plan.setCondition(now, metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error())
		return plan
	}
	status := &plan.Status
	status.DisruptedPods = plan.disrupted(now, s)
	status.ExpectedPods, status.DesiredHealthy = expected, desired
	status.CurrentHealthy = healthy(s.Pods, status.DisruptedPods)
	status.DisruptionsAllowed = max(0, status.CurrentHealthy-desired)
	if expected <= 0 {
		status.DisruptionsAllowed = 0
	}
	status.ObservedGeneration = s.Budget.Generation
	if status.DisruptionsAllowed > 0 {
		plan.setCondition(now, metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		plan.setCondition(now, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	return plan
}

func (plan *Plan) setCondition(now time.Time, status metav1.ConditionStatus, reason, message string) {
	condition := metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message,
		ObservedGeneration: plan.Status.ObservedGeneration,
	}
	if old := meta.FindStatusCondition(plan.Status.Conditions, condition.Type); old == nil || old.Status != status {
		condition.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	}
	meta.SetStatusCondition(&plan.Status.Conditions, condition)
}

// expect finds how many pods there should be, and how many must stay healthy.
func (plan *Plan) expect(s Snapshot) (expected, desired int32, err error) {
	spec := &s.Budget.Spec
	switch {
	case spec.MaxUnavailable != nil:
		if expected, err = plan.scale(s); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(spec.MaxUnavailable, int(expected), true)
		return expected, max(0, expected-int32(n)), err
	case spec.MinAvailable == nil:
		return 0, 0, nil
	case spec.MinAvailable.Type == intstr.Int:
		return int32(len(s.Pods)), spec.MinAvailable.IntVal, nil
	}
	if expected, err = plan.scale(s); err != nil {
		return 0, 0, err
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(spec.MinAvailable, int(expected), true)
	return expected, int32(n), err
}

// scale adds up the scales of all controllers of the pods.
func (plan *Plan) scale(s Snapshot) (int32, error) {
	scales := map[types.UID]int32{}
	asked := map[types.UID]bool{}
	unmanaged := false
	for _, p := range s.Pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			unmanaged = true
			continue
		}
		if asked[ref.UID] {
			continue
		}
		asked[ref.UID] = true
		scale, known, err := s.Scale(p.Namespace, ref)
		if err != nil {
			return 0, err
		}
		if !known {
			return 0, fmt.Errorf("found no controllers for pod %q", p.Name)
		}
		scales[scale.UID] = scale.Replicas
	}
	if unmanaged {
		plan.say(corev1.EventTypeWarning, "UnmanagedPods", "Pods selected by this PodDisruptionBudget (selector: %v) were found "+
			"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.", s.Budget.Spec.Selector)
	}
	total := int32(0)
	for _, n := range scales {
		total += n
	}
	return total, nil
}

// disrupted keeps the pods whose eviction was granted and that are not marked
// for deletion yet.
func (plan *Plan) disrupted(now time.Time, s Snapshot) map[string]metav1.Time {
	if len(s.Budget.Status.DisruptedPods) == 0 {
		return nil
	}
	left := map[string]metav1.Time{}
	for _, p := range s.Pods {
		at, granted := s.Budget.Status.DisruptedPods[p.Name]
		if !granted || p.DeletionTimestamp != nil {
			continue
		}
		if wait := at.Add(deletionTimeout).Sub(now); wait >= 0 {
			left[p.Name] = at
			plan.Again = children.Soonest(plan.Again, max(wait, time.Millisecond))
			continue
		}
		plan.NotDeleted = append(plan.NotDeleted, p)
	}
	if len(left) == 0 {
		return nil
	}
	return left
}

func healthy(pods []*corev1.Pod, disrupted map[string]metav1.Time) (n int32) {
	for _, p := range pods {
		if _, going := disrupted[p.Name]; p.DeletionTimestamp == nil && !going && children.Ready(p) {
			n++
		}
	}
	return n
}
