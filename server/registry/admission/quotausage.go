package admission

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/utils/ptr"

	"orch/server/registry"
)

type quantityOf = resource.Quantity

// quotaEvaluator knows what objects of one resource use.
type quotaEvaluator struct {
	names   []corev1.ResourceName               // that quotas can limit
	also    func(name corev1.ResourceName) bool // nil, or further names
	charges func(a *registry.Attempt) bool
	usage   func(obj runtime.Object, now time.Time) corev1.ResourceList
	require func(tracked []corev1.ResourceName, obj runtime.Object) error                 // nil: nothing
	matches func(scope corev1.ScopedResourceSelectorRequirement, obj runtime.Object) bool // nil: no scope does
}

func one() *resource.Quantity  { return resource.NewQuantity(1, resource.DecimalSI) }
func zero() *resource.Quantity { return resource.NewQuantity(0, resource.DecimalSI) }

// evaluatorFor counts objects of any resource; pods, services and claims use
// more than their number.
func evaluatorFor(group, plural string) quotaEvaluator {
	if group == "" {
		switch plural {
		case "pods":
			return podQuota()
		case "services":
			return serviceQuota()
		case "persistentvolumeclaims":
			return claimQuota()
		}
	}
	count := corev1.ResourceName("count/" + plural)
	if group != "" {
		count += corev1.ResourceName("." + group)
	}
	names := []corev1.ResourceName{count}
	if group == "" && slices.Contains([]string{"configmaps", "resourcequotas", "replicationcontrollers", "secrets"}, plural) {
		names = append(names, corev1.ResourceName(plural))
	}
	return quotaEvaluator{
		names:   names,
		charges: func(a *registry.Attempt) bool { return a.Operation == registry.OperationCreate && a.Subresource == "" },
		usage: func(runtime.Object, time.Time) corev1.ResourceList {
			used := make(corev1.ResourceList, len(names))
			for _, name := range names {
				used[name] = *one()
			}
			return used
		},
	}
}

// tracked are the names of hard that this evaluator measures, sorted.
func (e quotaEvaluator) tracked(hard corev1.ResourceList) []corev1.ResourceName {
	var names []corev1.ResourceName
	for name := range hard {
		if slices.Contains(e.names, name) || e.also != nil && e.also(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// inScope tells whether obj falls under all scopes of quota.
func (e quotaEvaluator) inScope(quota *corev1.ResourceQuota, obj runtime.Object) bool {
	var scopes []corev1.ScopedResourceSelectorRequirement
	for _, scope := range quota.Spec.Scopes {
		scopes = append(scopes, corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists})
	}
	if quota.Spec.ScopeSelector != nil {
		scopes = append(scopes, quota.Spec.ScopeSelector.MatchExpressions...)
	}
	for _, scope := range scopes {
		if e.matches == nil || !e.matches(scope, obj) {
			return false
		}
	}
	return true
}

func serviceQuota() quotaEvaluator {
	return quotaEvaluator{
		names:   []corev1.ResourceName{"count/services", corev1.ResourceServices, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers},
		charges: func(a *registry.Attempt) bool { return a.Subresource == "" },
		usage: func(obj runtime.Object, _ time.Time) corev1.ResourceList {
			service, err := asObject[*corev1.Service](obj)
			if err != nil {
				return nil
			}
			return serviceUsage(service)
		},
	}
}

func serviceUsage(service *corev1.Service) corev1.ResourceList {
	used := corev1.ResourceList{
		"count/services":                     *one(),
		corev1.ResourceServices:              *one(),
		corev1.ResourceServicesNodePorts:     *zero(),
		corev1.ResourceServicesLoadBalancers: *zero(),
	}
	ports := len(service.Spec.Ports)
	switch service.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		used[corev1.ResourceServicesLoadBalancers] = *one()
		if !ptr.Deref(service.Spec.AllocateLoadBalancerNodePorts, true) {
			ports = 0
			for _, p := range service.Spec.Ports {
				if p.NodePort != 0 {
					ports++
				}
			}
		}
	case corev1.ServiceTypeNodePort:
	default:
		return used
	}
	used[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(ports), resource.DecimalSI)
	return used
}

const classSuffix = ".storageclass.storage.k8s.io/"

func claimQuota() quotaEvaluator {
	plain := []corev1.ResourceName{corev1.ResourcePersistentVolumeClaims, corev1.ResourceRequestsStorage}
	return quotaEvaluator{
		names: append([]corev1.ResourceName{"count/persistentvolumeclaims"}, plain...),
		also: func(name corev1.ResourceName) bool {
			return slices.ContainsFunc(plain, func(p corev1.ResourceName) bool { return strings.HasSuffix(string(name), classSuffix+string(p)) })
		},
		charges: func(a *registry.Attempt) bool { return a.Subresource == "" },
		usage: func(obj runtime.Object, _ time.Time) corev1.ResourceList {
			claim, err := asObject[*corev1.PersistentVolumeClaim](obj)
			if err != nil {
				return nil
			}
			return claimUsage(claim)
		},
		matches: func(scope corev1.ScopedResourceSelectorRequirement, obj runtime.Object) bool {
			claim, err := asObject[*corev1.PersistentVolumeClaim](obj)
			return err == nil && scope.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass &&
				matchesValue(scope, ptr.Deref(claim.Spec.VolumeAttributesClassName, ""))
		},
	}
}

func claimUsage(claim *corev1.PersistentVolumeClaim) corev1.ResourceList {
	used := corev1.ResourceList{"count/persistentvolumeclaims": *one(), corev1.ResourcePersistentVolumeClaims: *one()}
	storage, asks := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if allocated, ok := claim.Status.AllocatedResources[corev1.ResourceStorage]; ok && allocated.Cmp(storage) > 0 {
		storage = allocated
	}
	storage = storage.DeepCopy()
	storage.RoundUp(0) // whole bytes
	if asks {
		used[corev1.ResourceRequestsStorage] = storage
	}
	if class := claimClass(claim); class != "" {
		used[corev1.ResourceName(class+classSuffix)+corev1.ResourcePersistentVolumeClaims] = *one()
		if asks {
			used[corev1.ResourceName(class+classSuffix)+corev1.ResourceRequestsStorage] = storage
		}
	}
	return used
}

// matchesValue applies a scope's operator to the one value that an object has,
// "" for none.
func matchesValue(scope corev1.ScopedResourceSelectorRequirement, value string) bool {
	switch scope.Operator {
	case corev1.ScopeSelectorOpExists:
		return value != ""
	case corev1.ScopeSelectorOpDoesNotExist:
		return value == ""
	case corev1.ScopeSelectorOpIn:
		return value != "" && slices.Contains(scope.Values, value)
	case corev1.ScopeSelectorOpNotIn:
		return value == "" || !slices.Contains(scope.Values, value)
	}
	return false
}

func podQuota() quotaEvaluator {
	return quotaEvaluator{
		names: []corev1.ResourceName{
			"count/pods", corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
			corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
			corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
		},
		also:    isPodResource,
		charges: chargesPod,
		usage: func(obj runtime.Object, now time.Time) corev1.ResourceList {
			pod, err := asObject[*corev1.Pod](obj)
			if err != nil {
				return nil
			}
			return podUsage(pod, now)
		},
		require: func(tracked []corev1.ResourceName, obj runtime.Object) error {
			pod, err := asObject[*corev1.Pod](obj)
			if err != nil {
				return err
			}
			return requireResources(tracked, pod)
		},
		matches: func(scope corev1.ScopedResourceSelectorRequirement, obj runtime.Object) bool {
			pod, err := asObject[*corev1.Pod](obj)
			return err == nil && podMatches(scope, pod)
		},
	}
}

// isPodResource knows huge pages and, as "requests.<name>", extended resources.
func isPodResource(name corev1.ResourceName) bool {
	text := string(name)
	if strings.HasPrefix(text, corev1.ResourceHugePagesPrefix) || strings.HasPrefix(text, corev1.ResourceRequestsHugePagesPrefix) {
		return true
	}
	extended, ok := strings.CutPrefix(text, corev1.DefaultResourceRequestsPrefix)
	return ok && isExtended(corev1.ResourceName(extended))
}

func isExtended(name corev1.ResourceName) bool {
	domain, _, qualified := strings.Cut(string(name), "/")
	return qualified && domain != "kubernetes.io" && !strings.HasSuffix(domain, ".kubernetes.io")
}

func chargesPod(a *registry.Attempt) bool {
	switch a.Subresource {
	case "":
		if a.Operation == registry.OperationCreate {
			return true
		}
		// An update can bring a pod into the scope of another quota.
		pod, ok := a.Object.(*corev1.Pod)
		old, wasPod := a.Old.(*corev1.Pod)
		return ok && wasPod && hasDeadline(pod) != hasDeadline(old)
	case "resize":
		return a.Operation == registry.OperationUpdate
	}
	return false
}

// podUsage: finished pods and those stuck in deletion count as objects only.
func podUsage(pod *corev1.Pod, now time.Time) corev1.ResourceList {
	used := corev1.ResourceList{"count/pods": *one()}
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return used
	}
	if pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil &&
		now.After(pod.DeletionTimestamp.Add(time.Duration(*pod.DeletionGracePeriodSeconds)*time.Second)) {
		return used
	}
	options := podresource.PodResourcesOptions{UseStatusResources: true}
	maps.Copy(used, computeUsage(podresource.PodRequests(pod, options), podresource.PodLimits(pod, options)))
	return used
}

// computeUsage names requests and limits as quotas do.
func computeUsage(requests, limits corev1.ResourceList) corev1.ResourceList {
	used := corev1.ResourceList{corev1.ResourcePods: *one()}
	for name, quantity := range requests {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage,
			strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			used[name] = quantity
			used[corev1.DefaultResourceRequestsPrefix+name] = quantity
		case isExtended(name):
			used[corev1.DefaultResourceRequestsPrefix+name] = quantity
		}
	}
	for _, name := range [3]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if quantity, ok := limits[name]; ok {
			used["limits."+name] = quantity
		}
	}
	return used
}

// requireResources: where a quota limits CPU or memory, each container must
// say how much it takes.
func requireResources(tracked []corev1.ResourceName, pod *corev1.Pod) error {
	if podresource.IsPodLevelResourcesSet(pod) {
		return nil
	}
	type lack struct {
		resource  corev1.ResourceName
		container string
	}
	told := make(map[lack]bool)
	missing := make(map[corev1.ResourceName][]string)
	visit := func(containers []corev1.Container) {
		for i := range containers {
			used := computeUsage(containers[i].Resources.Requests, containers[i].Resources.Limits)
			for _, name := range tracked {
				if _, ok := used[name]; !ok && isRequired(name) && !told[lack{name, containers[i].Name}] {
					told[lack{name, containers[i].Name}] = true
					missing[name] = append(missing[name], containers[i].Name)
				}
			}
		}
	}
	visit(pod.Spec.Containers)
	visit(pod.Spec.InitContainers)
	if len(missing) == 0 {
		return nil
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		slices.Sort(missing[name])
		parts = append(parts, fmt.Sprintf("%s for: %s", name, strings.Join(missing[name], ",")))
	}
	return fmt.Errorf("must specify %s", strings.Join(parts, "; "))
}

func isRequired(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		return true
	}
	return false
}

func podMatches(scope corev1.ScopedResourceSelectorRequirement, pod *corev1.Pod) bool {
	switch scope.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return hasDeadline(pod)
	case corev1.ResourceQuotaScopeNotTerminating:
		return !hasDeadline(pod)
	case corev1.ResourceQuotaScopeBestEffort:
		return isBestEffort(pod)
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !isBestEffort(pod)
	case corev1.ResourceQuotaScopePriorityClass:
		return matchesValue(scope, pod.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return reachesOtherNamespaces(pod)
	}
	return false
}

func hasDeadline(pod *corev1.Pod) bool {
	return pod.Spec.ActiveDeadlineSeconds != nil && *pod.Spec.ActiveDeadlineSeconds >= 0
}

// isBestEffort tells whether no container has a request or limit of CPU or memory.
func isBestEffort(pod *corev1.Pod) bool {
	sets := func(r corev1.ResourceRequirements) bool {
		for _, name := range [2]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if request.Sign() > 0 || limit.Sign() > 0 {
				return true
			}
		}
		return false
	}
	if pod.Spec.Resources != nil && sets(*pod.Spec.Resources) {
		return false
	}
	return !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return sets(c.Resources) }) &&
		!slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return sets(c.Resources) })
}

func reachesOtherNamespaces(pod *corev1.Pod) bool {
	if pod.Spec.Affinity == nil {
		return false
	}
	reaches := func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil }
	weighted := func(t corev1.WeightedPodAffinityTerm) bool { return reaches(t.PodAffinityTerm) }
	if a := pod.Spec.Affinity.PodAffinity; a != nil &&
		(slices.ContainsFunc(a.RequiredDuringSchedulingIgnoredDuringExecution, reaches) || slices.ContainsFunc(a.PreferredDuringSchedulingIgnoredDuringExecution, weighted)) {
		return true
	}
	a := pod.Spec.Affinity.PodAntiAffinity
	return a != nil &&
		(slices.ContainsFunc(a.RequiredDuringSchedulingIgnoredDuringExecution, reaches) || slices.ContainsFunc(a.PreferredDuringSchedulingIgnoredDuringExecution, weighted))
}
