package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"orch/server/registry"
)

// maxPodsWarned bounds the work of tightening a namespace that is full of pods.
const maxPodsWarned = 3000

// podSecurityStandards enforces the Pod Security Standards that a namespace's
// labels ask for; without labels everything is allowed.
type podSecurityStandards struct{ evaluator policy.Evaluator }

func (p podSecurityStandards) Admit(ctx context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationCreate && a.Operation != registry.OperationUpdate {
		return nil
	}
	if namespace, ok := a.Object.(*corev1.Namespace); ok {
		return p.admitNamespace(ctx, a, namespace)
	}
	if pod, ok := a.Object.(*corev1.Pod); ok {
		return p.admitPod(ctx, a, pod)
	}
	if a.Subresource == "" {
		p.warnController(ctx, a)
	}
	return nil
}

// privileged is the policy of a namespace without labels.
func privileged() api.Policy {
	all := api.LevelVersion{Level: api.LevelPrivileged, Version: api.LatestVersion()}
	return api.Policy{Enforce: all, Audit: all, Warn: all}
}

func policyOf(labels map[string]string) (api.Policy, field.ErrorList) {
	return api.PolicyToEvaluate(labels, privileged())
}

func (p podSecurityStandards) evaluate(level api.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) policy.AggregateCheckResult {
	return policy.AggregateCheckResults(p.evaluator.EvaluatePod(level, meta, spec))
}

func (p podSecurityStandards) admitPod(ctx context.Context, a *registry.Attempt, pod *corev1.Pod) error {
	if a.Subresource != "" && a.Subresource != "ephemeralcontainers" && a.Subresource != "resize" {
		return nil
	}
	if old, ok := a.Old.(*corev1.Pod); ok && !changesImages(pod, old) {
		return nil
	}
	namespace, err := registry.Of[*corev1.Namespace](a.Registry).Get("", a.Namespace)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to lookup namespace %q", a.Namespace))
	}
	wanted, _ := policyOf(namespace.Labels) // labels that make no sense count as restricted
	if wanted.Enforce.Level != api.LevelPrivileged {
		if result := p.evaluate(wanted.Enforce, &pod.ObjectMeta, &pod.Spec); !result.Allowed {
			return fmt.Errorf("violates PodSecurity %q: %s", wanted.Enforce.String(), result.ForbiddenDetail())
		}
	}
	p.warn(ctx, wanted.Warn, &pod.ObjectMeta, &pod.Spec)
	return nil
}

func (p podSecurityStandards) warn(ctx context.Context, level api.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) {
	if level.Level == api.LevelPrivileged {
		return
	}
	if result := p.evaluate(level, meta, spec); !result.Allowed {
		registry.AddWarning(ctx, fmt.Sprintf("would violate PodSecurity %q: %s", level.String(), result.ForbiddenDetail()))
	}
}

// warnController tells the author of a controller that its pods will be refused.
func (p podSecurityStandards) warnController(ctx context.Context, a *registry.Attempt) {
	template := podTemplate(a)
	if template == nil {
		return
	}
	namespace, err := registry.Of[*corev1.Namespace](a.Registry).Get("", a.Namespace)
	if err != nil {
		return // namespaceLifecycle has refused it already
	}
	wanted, _ := policyOf(namespace.Labels)
	p.warn(ctx, wanted.Warn, &template.ObjectMeta, &template.Spec)
}

func podTemplate(a *registry.Attempt) *corev1.PodTemplateSpec {
	switch o := a.Object.(type) {
	case *corev1.PodTemplate:
		return &o.Template
	case *corev1.ReplicationController:
		return o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *batchv1.Job:
		return &o.Spec.Template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	}
	return nil
}

// changesImages: nothing else that the standards look at can change in a pod.
func changesImages(pod, old *corev1.Pod) bool {
	same := func(a, b corev1.Container) bool { return a.Image == b.Image }
	if !slices.EqualFunc(pod.Spec.Containers, old.Spec.Containers, same) || !slices.EqualFunc(pod.Spec.InitContainers, old.Spec.InitContainers, same) {
		return true
	}
	return !slices.EqualFunc(pod.Spec.EphemeralContainers, old.Spec.EphemeralContainers,
		func(a, b corev1.EphemeralContainer) bool { return a.Name == b.Name && a.Image == b.Image })
}

// admitNamespace refuses labels that make no sense, and warns of pods that a
// tightened level would refuse.
func (p podSecurityStandards) admitNamespace(ctx context.Context, a *registry.Attempt, namespace *corev1.Namespace) error {
	if a.Subresource != "" {
		return nil
	}
	wanted, errs := policyOf(namespace.Labels)
	old, _ := a.Old.(*corev1.Namespace)
	if old == nil {
		return invalidLabels(namespace, errs)
	}
	before, oldErrs := policyOf(old.Labels)
	if len(errs) > 0 && (len(oldErrs) == 0 || errs.ToAggregate().Error() != oldErrs.ToAggregate().Error()) {
		return invalidLabels(namespace, errs)
	}
	now, then := wanted.Enforce, before.Enforce
	relaxed := now.Version == then.Version && api.CompareLevels(now.Level, then.Level) < 1
	if now == then || now.Level == api.LevelPrivileged || relaxed {
		return nil
	}
	for _, warning := range p.violations(a.Registry, namespace.Name, now) {
		registry.AddWarning(ctx, warning)
	}
	return nil
}

func invalidLabels(namespace *corev1.Namespace, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Namespace"}, namespace.Name, errs)
}

// violations words which pods a level would refuse, pods of the same complaint
// together.
func (p podSecurityStandards) violations(r *registry.Registry, namespace string, level api.LevelVersion) []string {
	var warnings []string
	pods := registry.Of[*corev1.Pod](r).List(namespace, nil)
	if len(pods) > maxPodsWarned {
		warnings = append(warnings, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", maxPodsWarned, len(pods)))
		pods = pods[:maxPodsWarned]
	}
	named := make(map[string][]string)
	for _, pod := range pods {
		if result := p.evaluate(level, &pod.ObjectMeta, &pod.Spec); !result.Allowed {
			named[result.ForbiddenReason()] = append(named[result.ForbiddenReason()], pod.Name)
		}
	}
	if len(named) == 0 {
		return warnings
	}
	warnings = append(warnings, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, level.String()))
	var lines []string
	for _, reason := range slices.Sorted(maps.Keys(named)) {
		lines = append(lines, describePods(named[reason])+": "+reason)
	}
	slices.Sort(lines)
	return append(warnings, lines...)
}

func describePods(names []string) string {
	first := slices.Min(names)
	switch len(names) {
	case 1:
		return first
	case 2:
		return first + " (and 1 other pod)"
	}
	return fmt.Sprintf("%s (and %d other pods)", first, len(names)-1)
}
