package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/server/registry"
)

// resourceQuota charges new objects to the quotas of their namespace, in the same
// write that makes them: whoever reads a quota and then counts objects knows,
// when the quota has not changed, that nothing was added meanwhile. So neither
// concurrent writers nor a recount can make a quota be exceeded. Updates that
// take more are charged just before. The quota controller gives back what
// deleted objects have freed.
type resourceQuota struct{ now func() time.Time }

func (q resourceQuota) Admit(ctx context.Context, a *registry.Attempt) error {
	if a.Namespace == "" || a.Object == nil || a.Resource.Evaluate != nil {
		return nil
	}
	if a.Operation != registry.OperationCreate && a.Operation != registry.OperationUpdate {
		return nil
	}
	evaluator := evaluatorFor(a.Resource.Group, a.Resource.Plural)
	if !evaluator.charges(a) {
		return nil
	}
	if a.Operation == registry.OperationCreate && a.Subresource == "" {
		// Refused now already, before what else may be wrong is told.
		if _, err := q.riders(a, evaluator); err != nil {
			return err
		}
		a.Ride(func() ([]registry.Rider, error) { return q.riders(a, evaluator) })
		return nil
	}
	return q.chargeNow(ctx, a, evaluator)
}

// riders are the quotas that the creation concerns, with its charge.
func (q resourceQuota) riders(a *registry.Attempt, e quotaEvaluator) ([]registry.Rider, error) {
	quotas := registry.Of[*corev1.ResourceQuota](a.Registry)
	var riders []registry.Rider
	for _, quota := range quotas.List(a.Namespace, nil) {
		charge, err := q.charge(a, e, quota)
		if err != nil {
			return nil, err
		}
		if len(charge) == 0 && !uncounted(quota, e) {
			continue
		}
		next := quota.DeepCopy()
		if len(charge) > 0 {
			next.Status.Used = add(next.Status.Used, charge)
		}
		riders = append(riders, registry.Rider{Resource: quotas.Resource(), Object: next})
	}
	return riders, nil
}

// uncounted tells whether a quota's first count, or that of a new limit, is still
// to come. It charges nothing yet, but the count must not miss what is being
// written: the quota, though the same, then is of a later version.
func uncounted(quota *corev1.ResourceQuota, e quotaEvaluator) bool {
	return len(e.tracked(quota.Spec.Hard)) > len(e.tracked(quota.Status.Hard))
}

// chargeNow charges ahead of the write.
func (q resourceQuota) chargeNow(ctx context.Context, a *registry.Attempt, evaluator quotaEvaluator) error {
	quotas := registry.Of[*corev1.ResourceQuota](a.Registry)
	for _, quota := range quotas.List(a.Namespace, nil) {
		charge, err := q.charge(a, evaluator, quota)
		if err != nil {
			return err
		}
		if len(charge) == 0 || a.DryRun {
			continue
		}
		_, err = quotas.MutateStatus(ctx, quota.Namespace, quota.Name, func(current *corev1.ResourceQuota) error {
			charge, err := q.charge(a, evaluator, current)
			if err == nil {
				current.Status.Used = add(current.Status.Used, charge)
			}
			return err
		})
		if err != nil && !apierrors.IsNotFound(err) { // a quota that went away restricts nobody
			return err
		}
	}
	return nil
}

// charge is what the write adds to quota's usage, nil when it does not concern
// it; an error when it does not fit.
func (q resourceQuota) charge(a *registry.Attempt, e quotaEvaluator, quota *corev1.ResourceQuota) (corev1.ResourceList, error) {
	tracked := e.tracked(quota.Status.Hard)
	if len(tracked) == 0 || !e.inScope(quota, a.Object) {
		return nil, nil
	}
	if e.require != nil {
		if err := e.require(tracked, a.Object); err != nil {
			return nil, fmt.Errorf("failed quota: %s: %v", quota.Name, err)
		}
	}
	if unknown := slices.DeleteFunc(slices.Clone(tracked), func(name corev1.ResourceName) bool {
		_, known := quota.Status.Used[name]
		return known
	}); len(unknown) > 0 {
		return nil, fmt.Errorf("status unknown for quota: %s, resources: %s", quota.Name, joinNames(unknown))
	}
	usage := e.usage(a.Object, q.now())
	if negative := negativeOf(usage); len(negative) > 0 {
		return nil, fmt.Errorf("quota usage is negative for resource(s): %s", joinNames(negative))
	}
	if a.Operation == registry.OperationUpdate && a.Old != nil && e.inScope(quota, a.Old) {
		usage = increase(usage, e.usage(a.Old, q.now()))
	}
	usage = positive(mask(usage, tracked))
	if len(usage) == 0 {
		return nil, nil
	}
	return usage, checkFit(quota, usage)
}

func checkFit(quota *corev1.ResourceQuota, requested corev1.ResourceList) error {
	var exceeded []corev1.ResourceName
	for name, quantity := range sorted(requested) {
		total := quota.Status.Used[name].DeepCopy()
		total.Add(quantity)
		if total.Cmp(quota.Status.Hard[name]) > 0 {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", quota.Name,
		describe(mask(requested, exceeded)), describe(mask(quota.Status.Used, exceeded)), describe(mask(quota.Status.Hard, exceeded)))
}

// CountQuota recounts what quota limits: the usage of all objects in its
// namespace that are in its scopes. The quota controller writes it, with the
// limits of the spec, into the status.
func CountQuota(r *registry.Registry, quota *corev1.ResourceQuota, now time.Time) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	for name := range quota.Spec.Hard {
		used[name] = *zero()
	}
	for _, res := range r.Resources() {
		if !res.Namespaced || res.Stored != nil || res.Evaluate != nil {
			continue
		}
		e := evaluatorFor(res.Group, res.Plural)
		tracked := e.tracked(quota.Spec.Hard)
		if len(tracked) == 0 {
			continue
		}
		list, err := r.List(context.Background(), res, registry.Selection{Namespace: quota.Namespace}, nil)
		if err != nil {
			return nil, fmt.Errorf("count %s for quota %s: %w", res.Plural, quota.Name, err)
		}
		for _, obj := range list.Items {
			if e.inScope(quota, obj) {
				used = add(used, mask(e.usage(obj, now), tracked))
			}
		}
	}
	return used, nil
}

func describe(list corev1.ResourceList) string {
	var parts []string
	for name, quantity := range sorted(list) {
		parts = append(parts, string(name)+"="+quantity.String())
	}
	return strings.Join(parts, ",")
}

func joinNames(names []corev1.ResourceName) string {
	names = slices.Clone(names)
	slices.Sort(names)
	var parts []string
	for _, name := range names {
		parts = append(parts, string(name))
	}
	return strings.Join(parts, ",")
}

func mask(list corev1.ResourceList, names []corev1.ResourceName) corev1.ResourceList {
	out := maps.Clone(list)
	maps.DeleteFunc(out, func(name corev1.ResourceName, _ quantityOf) bool { return !slices.Contains(names, name) })
	return out
}

func add(a, b corev1.ResourceList) corev1.ResourceList {
	sum := corev1.ResourceList{}
	for name, quantity := range a {
		sum[name] = quantity.DeepCopy()
	}
	for name, quantity := range b {
		total, known := sum[name]
		if !known {
			sum[name] = quantity.DeepCopy()
			continue
		}
		total.Add(quantity)
		sum[name] = total
	}
	return sum
}

// increase is by how much now exceeds before.
func increase(now, before corev1.ResourceList) corev1.ResourceList {
	delta := corev1.ResourceList{}
	for name, quantity := range now {
		d := quantity.DeepCopy()
		if old, ok := before[name]; ok {
			d.Sub(old)
		}
		delta[name] = d
	}
	return delta
}

func positive(list corev1.ResourceList) corev1.ResourceList {
	maps.DeleteFunc(list, func(_ corev1.ResourceName, quantity quantityOf) bool { return quantity.Sign() <= 0 })
	return list
}

func negativeOf(list corev1.ResourceList) (names []corev1.ResourceName) {
	for name, quantity := range list {
		if quantity.Sign() < 0 {
			names = append(names, name)
		}
	}
	return names
}

var errNoObject = errors.New("not an object that quotas count")

// asObject is for objects out of the registry and of attempts alike.
func asObject[T runtime.Object](obj runtime.Object) (T, error) {
	typed, ok := obj.(T)
	if !ok {
		return typed, errNoObject
	}
	return typed, nil
}
