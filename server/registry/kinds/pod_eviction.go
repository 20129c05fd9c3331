package kinds

import (
	"context"
	stderrors "errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/server/registry"
)

// A budget remembers at most so many pods whose going it has not yet seen.
const maxDisruptedPods = 2000

// createEviction deletes a pod unless that would break its disruption budget.
func createEviction(ctx context.Context, r *registry.Registry, ns, name string, body runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	eviction, ok := body.(*policyv1.Eviction)
	if !ok {
		return nil, errors.NewBadRequest(fmt.Sprintf("not a Eviction object: %T", body))
	}
	if eviction.Name != name {
		return nil, errors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	options, err := evictionOptions(eviction, opts)
	if err != nil {
		return nil, err
	}
	pod, err := registry.Of[*corev1.Pod](r).Get(ns, name)
	if err != nil {
		return nil, err
	}
	if err := checkPreconditions(pod, options.Preconditions); err != nil {
		return nil, err
	}
	guarded := false
	if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil || pod.Status.Phase == corev1.PodUnknown {
		if guarded, err = consultBudget(ctx, r, pod, len(options.DryRun) > 0); err != nil {
			return nil, err
		}
	}
	// What was decided from the pod's present state must not be done to another.
	pinned := options.Preconditions == nil || options.Preconditions.ResourceVersion == nil
	if pinned && !guarded && !podEnded(pod) {
		options = options.DeepCopy()
		pinVersion(options, pod.ResourceVersion)
	}
	if err := evictPod(ctx, r, pod, options); err != nil {
		if errors.IsConflict(err) && pinned {
			return nil, tooManyRequests("")
		}
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

func podEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
}

// evictionOptions merges the two places where a dry run can be asked for.
func evictionOptions(e *policyv1.Eviction, opts *metav1.CreateOptions) (*metav1.DeleteOptions, error) {
	if e.DeleteOptions == nil {
		return &metav1.DeleteOptions{DryRun: opts.DryRun}, nil
	}
	options := e.DeleteOptions.DeepCopy()
	switch {
	case len(options.DryRun) == 0:
		options.DryRun = opts.DryRun
	case len(opts.DryRun) > 0 && !slices.Equal(opts.DryRun, options.DryRun):
		return nil, fmt.Errorf("Non-matching dry-run options in request and content: %v and %v", opts.DryRun, options.DryRun)
	}
	return options, nil
}

// consultBudget takes one disruption from the pod's budget. guarded is false
// when the pod may go without one.
func consultBudget(ctx context.Context, r *registry.Registry, pod *corev1.Pod, dryRun bool) (guarded bool, err error) {
	budgets := budgetsOf(registry.Of[*policyv1.PodDisruptionBudget](r).List(pod.Namespace, nil), pod)
	switch {
	case len(budgets) == 0:
		return true, nil // nothing to race with
	case len(budgets) > 1:
		return false, &errors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: 500,
			Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
		}}
	}
	budget := budgets[0]
	if !podReady(pod) && unhealthyMayGo(budget) {
		return false, nil
	}
	if dryRun {
		return true, takeDisruption(budget.DeepCopy(), pod.Name, metav1.Now().Rfc3339Copy())
	}
	_, err = registry.Of[*policyv1.PodDisruptionBudget](r).MutateStatus(ctx, budget.Namespace, budget.Name,
		func(b *policyv1.PodDisruptionBudget) error {
			return takeDisruption(b, pod.Name, metav1.Now().Rfc3339Copy())
		})
	return true, err
}

func budgetsOf(budgets []*policyv1.PodDisruptionBudget, pod *corev1.Pod) []*policyv1.PodDisruptionBudget {
	var of []*policyv1.PodDisruptionBudget
	for _, b := range budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && selector.Matches(labels.Set(pod.Labels)) {
			of = append(of, b)
		}
	}
	return of
}

func podReady(p *corev1.Pod) bool {
	c := podCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func unhealthyMayGo(b *policyv1.PodDisruptionBudget) bool {
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// takeDisruption spends one of the disruptions that b allows on podName.
func takeDisruption(b *policyv1.PodDisruptionBudget, podName string, now metav1.Time) error {
	forbidden := func(why string) error {
		return errors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, stderrors.New(why))
	}
	switch {
	case b.Status.ObservedGeneration < b.Generation:
		return tooManyRequests(b.Name)
	case b.Status.DisruptionsAllowed < 0:
		return forbidden("pdb disruptions allowed is negative")
	case len(b.Status.DisruptedPods) > maxDisruptedPods:
		return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller")
	case b.Status.DisruptionsAllowed == 0:
		return budgetSpent(b)
	}
	b.Status.DisruptionsAllowed--
	if b.Status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&b.Status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
			Reason: policyv1.InsufficientPodsReason, ObservedGeneration: b.Status.ObservedGeneration,
		})
	}
	if b.Status.DisruptedPods == nil {
		b.Status.DisruptedPods = make(map[string]metav1.Time)
	}
	b.Status.DisruptedPods[podName] = now
	return nil
}

const wouldViolate = "Cannot evict pod as it would violate the pod's disruption budget."

// tooManyRequests asks to try again once the budget has been looked at.
func tooManyRequests(budget string) error {
	err := errors.NewTooManyRequests(wouldViolate, 10)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type:    policyv1.DisruptionBudgetCause,
		Message: fmt.Sprintf("The disruption budget %s is still being processed by the server.", budget),
	}}
	return err
}

func budgetSpent(b *policyv1.PodDisruptionBudget) error {
	c := meta.FindStatusCondition(b.Status.Conditions, policyv1.DisruptionAllowedCondition)
	explained := c != nil && c.Status == metav1.ConditionFalse && c.Message != ""
	message := fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", b.Name)
	switch {
	case explained && c.Reason == policyv1.SyncFailedReason:
		message += " because it failed sync: " + c.Message
	case b.Status.CurrentHealthy <= b.Status.DesiredHealthy:
		message = fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy)
	case explained:
		message += fmt.Sprintf(" (%s): %s", c.Reason, c.Message)
	}
	err := errors.NewTooManyRequests(wouldViolate, 0)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: policyv1.DisruptionBudgetCause, Message: message}}
	return err
}

// evictPod leaves the reason in the pod's conditions and deletes it.
func evictPod(ctx context.Context, r *registry.Registry, pod *corev1.Pod, options *metav1.DeleteOptions) error {
	if len(options.DryRun) == 0 {
		marked, err := registry.Of[*corev1.Pod](r).MutateStatus(ctx, pod.Namespace, pod.Name, func(p *corev1.Pod) error {
			if err := checkPreconditions(p, options.Preconditions); err != nil {
				return err
			}
			setPodCondition(p, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting", ObservedGeneration: p.Generation,
			}, metav1.Now().Rfc3339Copy())
			return nil
		})
		if err != nil {
			return err
		}
		if p := options.Preconditions; p != nil && p.ResourceVersion != nil {
			options = options.DeepCopy()
			pinVersion(options, marked.ResourceVersion)
		}
	}
	_, _, err := r.Delete(ctx, r.Lookup("", "v1", "pods"), pod.Namespace, pod.Name, options)
	return err
}

func pinVersion(options *metav1.DeleteOptions, version string) {
	if options.Preconditions == nil {
		options.Preconditions = &metav1.Preconditions{}
	}
	options.Preconditions.ResourceVersion = &version
}

func checkPreconditions(p *corev1.Pod, want *metav1.Preconditions) error {
	conflict := func(format string, args ...any) error {
		return errors.NewConflict(corev1.Resource("Pod"), p.Name, fmt.Errorf(format, args...))
	}
	if want == nil {
		return nil
	}
	if uid := want.UID; uid != nil && *uid != "" && *uid != p.UID {
		return conflict("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *uid, p.UID)
	}
	if v := want.ResourceVersion; v != nil && *v != "" && *v != p.ResourceVersion {
		return conflict("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *v, p.ResourceVersion)
	}
	return nil
}
