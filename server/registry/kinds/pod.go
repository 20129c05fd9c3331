package kinds

import (
	"context"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/registry"
)

func core(kind string) schema.GroupVersionKind { return corev1.SchemeGroupVersion.WithKind(kind) }

func pods() *registry.Resource {
	return entry[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", traits[*corev1.Pod]{
		ShortNames: []string{"po"}, Categories: []string{"all"},
		Spec:                podSpec{within(func(p *corev1.Pod) *corev1.PodSpec { return &p.Spec })},
		Status:              within(func(p *corev1.Pod) *corev1.PodStatus { return &p.Status }),
		StatusPrepare:       preparePodStatus,
		StatusValidate:      validatePodStatusUpdate,
		Default:             defaultPod,
		PrepareCreate:       preparePodCreate,
		Validate:            validatePod,
		ValidateUpdate:      validatePodUpdate,
		Warnings:            podWarnings,
		Fields:              podFields,
		Lane:                func(p *corev1.Pod) string { return p.Spec.NodeName },
		LaneField:           "spec.nodeName",
		BeginDelete:         beginPodDelete,
		UnconditionalUpdate: true,
		Columns:             podColumns(),
		Row:                 podRow,
		Subresources: []*registry.Subresource{
			{
				Name: "binding", Kind: core("Binding"), New: newBinding, Create: createBinding,
				// Not served, as the API serves the action alone: bindPod writes through it.
				Update: &registry.View{},
			},
			{
				Name: "eviction", Kind: policyv1.SchemeGroupVersion.WithKind("Eviction"),
				New: func() runtime.Object { return new(policyv1.Eviction) }, Create: createEviction,
			},
			{Name: "ephemeralcontainers", Update: &registry.View{
				Prepare: func(_ context.Context, obj, old registry.Object) {
					keepAllButEphemeralContainers(obj.(*corev1.Pod), old.(*corev1.Pod))
				},
				Validate: compare(validateEphemeralContainersUpdate),
			}},
			{Name: "resize", Update: &registry.View{
				Prepare: func(_ context.Context, obj, old registry.Object) {
					keepAllButResources(obj.(*corev1.Pod), old.(*corev1.Pod))
				},
				Validate: compare(validatePodResize),
			}},
			connect("log", core("Pod"), "get"),
			connect("exec", core("PodExecOptions"), "get", "create"),
			connect("attach", core("PodAttachOptions"), "get", "create"),
			connect("portforward", core("PodPortForwardOptions"), "get", "create"),
			connect("proxy", core("PodProxyOptions"), proxyVerbs()...),
		},
	})
}

// podSpec does not count the node: binding a pod is no new generation of it.
type podSpec struct{ section[*corev1.Pod] }

func (podSpec) of(p *corev1.Pod) any {
	spec := p.Spec
	spec.NodeName = ""
	return &spec
}

func podFields(p *corev1.Pod) fields.Set {
	podIP := ""
	if len(p.Status.PodIPs) > 0 {
		podIP = p.Status.PodIPs[0].IP
	}
	return fields.Set{
		"spec.nodeName":            p.Spec.NodeName,
		"spec.restartPolicy":       string(p.Spec.RestartPolicy),
		"spec.schedulerName":       p.Spec.SchedulerName,
		"spec.serviceAccountName":  p.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(p.Spec.HostNetwork),
		"status.phase":             string(p.Status.Phase),
		"status.podIP":             podIP,
		"status.podIPs":            "", // a known name, which upstream never fills in
		"status.nominatedNodeName": p.Status.NominatedNodeName,
	}
}

func preparePodCreate(_ context.Context, _ *registry.Registry, p *corev1.Pod) error {
	defaultPodResources(p)
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: qosClass(p)}
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, LastTransitionTime: p.CreationTimestamp,
			Reason:  corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		}}
	}
	mergeMatchLabelKeys(p)
	if errs := validatePodNew(p); len(errs) > 0 {
		return registry.Invalid(core("Pod").GroupKind(), p.Name, errs)
	}
	return nil
}

// mergeMatchLabelKeys turns matchLabelKeys and mismatchLabelKeys into
// requirements on the pod's own label values (KEP-3633, KEP-3243).
func mergeMatchLabelKeys(p *corev1.Pod) {
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			mergeTermKeys(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
		}
		if a.PodAntiAffinity != nil {
			mergeTermKeys(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
		}
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		requireLabels(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, p.Labels)
	}
}

func mergeTermKeys(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, labels map[string]string) {
	merge := func(t *corev1.PodAffinityTerm) {
		requireLabels(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
		requireLabels(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
	}
	for i := range required {
		merge(&required[i])
	}
	for i := range preferred {
		merge(&preferred[i].PodAffinityTerm)
	}
}

// requireLabels leaves a nil selector alone: it matches nothing.
func requireLabels(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) {
	if s == nil {
		return
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			s.MatchExpressions = append(s.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}

// beginPodDelete gives a running pod its grace period; one that no node has, or
// that has ended, goes at once.
func beginPodDelete(_ context.Context, _ *registry.Registry, p *corev1.Pod, options *metav1.DeleteOptions) (bool, error) {
	period := derefOr(p.Spec.TerminationGracePeriodSeconds, 0)
	if options.GracePeriodSeconds != nil {
		period = *options.GracePeriodSeconds
	}
	if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		period = 0
	}
	if period < 0 {
		period = 1
	}
	options.GracePeriodSeconds = &period
	return period > 0, nil
}

func preparePodStatus(p, old *corev1.Pod) {
	p.DeletionTimestamp = old.DeletionTimestamp
	p.OwnerReferences = old.OwnerReferences
	setZero(&p.Status.QOSClass, old.Status.QOSClass)
	setZero(&p.Status.ObservedGeneration, old.Status.ObservedGeneration)
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		if was := podCondition(old, c.Type); was != nil {
			setZero(&c.ObservedGeneration, was.ObservedGeneration)
		}
	}
}

func podCondition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// setPodCondition adds c or replaces the one of its type; the transition time
// moves only when the status does.
func setPodCondition(p *corev1.Pod, c corev1.PodCondition, now metav1.Time) {
	c.LastTransitionTime = now
	was := podCondition(p, c.Type)
	if was == nil {
		p.Status.Conditions = append(p.Status.Conditions, c)
		return
	}
	if was.Status == c.Status {
		c.LastTransitionTime = was.LastTransitionTime
	}
	*was = c
}

func keepAllButEphemeralContainers(p, old *corev1.Pod) {
	ephemeral := p.Spec.EphemeralContainers
	p.Spec, p.Status = old.Spec, old.Status
	metav1.ResetObjectMetaForStatus(p, old)
	p.Spec.EphemeralContainers = ephemeral
}

// keepAllButResources keeps a pod whose containers were added, removed or
// renamed as it came, so that validation refuses it.
func keepAllButResources(p, old *corev1.Pod) {
	if !sameContainers(p.Spec.Containers, old.Spec.Containers) || !sameContainers(p.Spec.InitContainers, old.Spec.InitContainers) {
		return
	}
	containers, initContainers := resizedContainers(p.Spec.Containers, old.Spec.Containers), resizedContainers(p.Spec.InitContainers, old.Spec.InitContainers)
	podResources := p.Spec.Resources
	p.Spec, p.Status = old.Spec, old.Status
	metav1.ResetObjectMetaForStatus(p, old)
	p.Spec.Containers, p.Spec.InitContainers, p.Spec.Resources = containers, initContainers, podResources
}

func sameContainers(a, b []corev1.Container) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.Container) bool { return x.Name == y.Name })
}

func resizedContainers(from, old []corev1.Container) []corev1.Container {
	merged := slices.Clone(old)
	for i := range merged {
		merged[i].Resources = from[i].Resources
		merged[i].ResizePolicy = from[i].ResizePolicy
	}
	return merged
}

func sameValue(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
