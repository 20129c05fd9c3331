package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	podresource "k8s.io/component-helpers/resource"

	"orch/server/registry"
)

// limitRanger fills in and checks resources by the LimitRanges of a namespace.
type limitRanger struct{}

func (limitRanger) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationCreate && a.Operation != registry.OperationUpdate {
		return nil
	}
	claims := isOf(a, "", "persistentvolumeclaims", "")
	resize := isOf(a, "", "pods", "resize") && a.Operation == registry.OperationUpdate
	if newPod(a) == nil && !claims && !resize {
		return nil
	}
	if a.Old != nil && a.Old.GetDeletionTimestamp() != nil {
		return nil
	}
	for _, limits := range registry.Of[*corev1.LimitRange](a.Registry).List(a.Namespace, nil) {
		if err := applyLimits(limits, a); err != nil {
			return err
		}
	}
	return nil
}

func applyLimits(limits *corev1.LimitRange, a *registry.Attempt) error {
	switch obj := a.Object.(type) {
	case *corev1.Pod:
		fillPod(limits, obj)
		return checkPod(limits, obj)
	case *corev1.PersistentVolumeClaim:
		return checkClaim(limits, obj)
	}
	return nil
}

// fillPod gives the containers the default requests and limits they lack, and
// notes in an annotation what it set.
func fillPod(limits *corev1.LimitRange, pod *corev1.Pod) {
	requests, ceilings := corev1.ResourceList{}, corev1.ResourceList{}
	for i := range limits.Spec.Limits {
		if item := &limits.Spec.Limits[i]; item.Type == corev1.LimitTypeContainer {
			maps.Copy(requests, item.DefaultRequest)
			maps.Copy(ceilings, item.Default)
		}
	}
	if len(requests) == 0 && len(ceilings) == 0 {
		return
	}
	var set []string
	for i := range pod.Spec.Containers {
		set = append(set, fillContainer(&pod.Spec.Containers[i], requests, ceilings, "container")...)
	}
	for i := range pod.Spec.InitContainers {
		set = append(set, fillContainer(&pod.Spec.InitContainers[i], requests, ceilings, "init container")...)
	}
	if len(set) == 0 {
		return
	}
	if pod.Annotations == nil {
		pod.Annotations = make(map[string]string, 1)
	}
	pod.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(set, "; ")
}

func fillContainer(c *corev1.Container, requests, ceilings corev1.ResourceList, kind string) (set []string) {
	if names := fillMissing(&c.Resources.Requests, requests); len(names) > 0 {
		set = append(set, fmt.Sprintf("%s request for %s %s", strings.Join(names, ", "), kind, c.Name))
	}
	if names := fillMissing(&c.Resources.Limits, ceilings); len(names) > 0 {
		set = append(set, fmt.Sprintf("%s limit for %s %s", strings.Join(names, ", "), kind, c.Name))
	}
	return set
}

func fillMissing(list *corev1.ResourceList, defaults corev1.ResourceList) (names []string) {
	for name, quantity := range defaults {
		if _, has := (*list)[name]; has {
			continue
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = quantity.DeepCopy()
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

func checkPod(limits *corev1.LimitRange, pod *corev1.Pod) error {
	var errs []error
	for i := range limits.Spec.Limits {
		item := &limits.Spec.Limits[i]
		switch item.Type {
		case corev1.LimitTypeContainer:
			for j := range pod.Spec.Containers {
				r := &pod.Spec.Containers[j].Resources
				errs = append(errs, checkItem(item, r.Requests, r.Limits)...)
			}
			for j := range pod.Spec.InitContainers {
				r := &pod.Spec.InitContainers[j].Resources
				errs = append(errs, checkItem(item, r.Requests, r.Limits)...)
			}
		case corev1.LimitTypePod:
			options := podresource.PodResourcesOptions{ExcludeOverhead: true}
			errs = append(errs, checkItem(item, podresource.PodRequests(pod, options), podresource.PodLimits(pod, options))...)
		}
	}
	return utilerrors.NewAggregate(errs)
}

func checkItem(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) (errs []error) {
	for name, bound := range sorted(item.Min) {
		errs = append(errs, checkMin(item.Type, name, bound, requests, limits))
	}
	for name, bound := range sorted(item.Max) {
		errs = append(errs, checkMax(item.Type, name, bound, requests, limits))
	}
	for name, bound := range sorted(item.MaxLimitRequestRatio) {
		errs = append(errs, checkRatio(item.Type, name, bound, requests, limits))
	}
	return errs
}

func checkClaim(limits *corev1.LimitRange, claim *corev1.PersistentVolumeClaim) error {
	var errs []error
	requests := claim.Spec.Resources.Requests
	for i := range limits.Spec.Limits {
		item := &limits.Spec.Limits[i]
		if item.Type != corev1.LimitTypePersistentVolumeClaim {
			continue
		}
		for name, bound := range sorted(item.Min) {
			errs = append(errs, checkMin(item.Type, name, bound, requests, nil))
		}
		for name, bound := range sorted(item.Max) {
			errs = append(errs, checkMaxRequest(item.Type, name, bound, requests))
		}
	}
	return utilerrors.NewAggregate(errs)
}

// inOneUnit gives quantities as integers of one unit, the finest that none overflows.
func inOneUnit(request, limit, bound resource.Quantity) (int64, int64, int64) {
	r, l, b := request.Value(), limit.Value(), bound.Value()
	if r <= resource.MaxMilliValue && l <= resource.MaxMilliValue && b <= resource.MaxMilliValue {
		return request.MilliValue(), limit.MilliValue(), bound.MilliValue()
	}
	return r, l, b
}

func checkMin(kind corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	request, requested := requests[name]
	limit, limited := limits[name]
	r, l, b := inOneUnit(request, limit, bound)
	switch {
	case !requested:
		return fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", name, kind, bound.String())
	case r < b:
		return fmt.Errorf("minimum %s usage per %s is %s, but request is %s", name, kind, bound.String(), request.String())
	case limited && l < b:
		return fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", name, kind, bound.String(), limit.String())
	}
	return nil
}

func checkMax(kind corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	request, requested := requests[name]
	limit, limited := limits[name]
	r, l, b := inOneUnit(request, limit, bound)
	switch {
	case !limited:
		return fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", name, kind, bound.String())
	case l > b:
		return fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", name, kind, bound.String(), limit.String())
	case requested && r > b:
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, kind, bound.String(), request.String())
	}
	return nil
}

func checkMaxRequest(kind corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests corev1.ResourceList) error {
	request, requested := requests[name]
	r, _, b := inOneUnit(request, resource.Quantity{}, bound)
	switch {
	case !requested:
		return fmt.Errorf("maximum %s usage per %s is %s.  No request is specified", name, kind, bound.String())
	case r > b:
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, kind, bound.String(), request.String())
	}
	return nil
}

func checkRatio(kind corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	request, limit := requests[name], limits[name]
	r, l, _ := inOneUnit(request, limit, bound)
	switch {
	case r == 0:
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, kind, bound.String())
	case l == 0:
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, kind, bound.String())
	}
	if ratio := float64(l) / float64(r); ratio > bound.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, kind, bound.String(), ratio)
	}
	return nil
}
