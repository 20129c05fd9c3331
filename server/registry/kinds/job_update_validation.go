package kinds

import (
	"fmt"
	"regexp"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	s, was := &j.Spec, &old.Spec
	if !indexed(s) {
		immutable(&f, at.Child("completions"), s.Completions, was.Completions)
	} else if !sameValue(s.Completions, was.Completions) && s.Completions != nil && *s.Completions != *s.Parallelism {
		f.invalid(at.Child("completions"), s.Completions, "can only be modified in tandem with spec.parallelism")
	}
	immutable(&f, at.Child("selector"), s.Selector, was.Selector)
	f.jobTemplateKept(at, j, old)
	immutable(&f, at.Child("completionMode"), s.CompletionMode, was.CompletionMode)
	immutable(&f, at.Child("podFailurePolicy"), s.PodFailurePolicy, was.PodFailurePolicy)
	immutable(&f, at.Child("backoffLimitPerIndex"), s.BackoffLimitPerIndex, was.BackoffLimitPerIndex)
	immutable(&f, at.Child("managedBy"), s.ManagedBy, was.ManagedBy)
	immutable(&f, at.Child("successPolicy"), s.SuccessPolicy, was.SuccessPolicy)
	return f.list
}

// jobTemplateKept lets a job that is suspended and has no pods be placed anew,
// and its resources be changed (KEP-2926, KEP-5440).
func (f *faults) jobTemplateKept(at *field.Path, j, old *batchv1.Job) {
	now, was := &j.Spec.Template, &old.Spec.Template
	idle := derefOr(old.Spec.Suspend, false) && old.Status.Active == 0 &&
		(old.Status.StartTime == nil || jobCondition(old, batchv1.JobSuspended))
	if !idle {
		immutable(f, at.Child("template"), now, was)
		return
	}
	want := was.DeepCopy()
	want.Labels, want.Annotations = now.Labels, now.Annotations
	want.Spec.NodeSelector, want.Spec.Tolerations, want.Spec.SchedulingGates = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.SchedulingGates
	affinity := corev1.Affinity{}
	if want.Spec.Affinity != nil {
		affinity = *want.Spec.Affinity
	}
	affinity.NodeAffinity = nodeAffinityOf(&now.Spec)
	want.Spec.Affinity = &affinity
	if affinity == (corev1.Affinity{}) && now.Spec.Affinity == nil {
		want.Spec.Affinity = nil
	}
	takeResources(want.Spec.Containers, now.Spec.Containers)
	takeResources(want.Spec.InitContainers, now.Spec.InitContainers)
	immutable(f, at.Child("template.spec"), now.Spec, want.Spec)
}

func takeResources(to, from []corev1.Container) {
	if !sameContainers(to, from) {
		return
	}
	for i := range to {
		to[i].Resources = from[i].Resources
	}
}

func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	var f faults
	at, s := field.NewPath("status"), &j.Status
	f.notNegative(at.Child("active"), int64(s.Active))
	f.notNegative(at.Child("succeeded"), int64(s.Succeeded))
	f.notNegative(at.Child("failed"), int64(s.Failed))
	f.notNegative(at.Child("ready"), int64(derefOr(s.Ready, 0)))
	f.notNegative(at.Child("terminating"), int64(derefOr(s.Terminating, 0)))
	f.jobConditions(at, j, old)
	if s.StartTime != nil && s.CompletionTime != nil && s.CompletionTime.Before(s.StartTime) {
		f.invalid(at.Child("completionTime"), s.CompletionTime, "must be equal to or after `startTime`")
	}
	if s.CompletionTime != nil && old.Status.CompletionTime != nil && !s.CompletionTime.Equal(old.Status.CompletionTime) {
		f.invalid(at.Child("completionTime"), s.CompletionTime, "field is immutable")
	}
	if n := derefOr(s.Ready, 0); n > s.Active && (!sameValue(s.Ready, old.Status.Ready) || s.Active != old.Status.Active) {
		f.invalid(at.Child("ready"), n, "cannot set more ready pods than active")
	}
	return f.list
}

func (f *faults) jobConditions(at *field.Path, j, old *batchv1.Job) {
	complete, failed := jobCondition(j, batchv1.JobComplete), jobCondition(j, batchv1.JobFailed)
	target, met := jobCondition(j, batchv1.JobFailureTarget), jobCondition(j, batchv1.JobSuccessCriteriaMet)
	refuse := func(is bool, why string) {
		if is {
			f.invalid(at.Child("conditions"), field.OmitValueType{}, why)
		}
	}
	completes := complete && !jobCondition(old, batchv1.JobComplete)
	fails := failed && !jobCondition(old, batchv1.JobFailed)
	refuse(complete && failed && (completes || fails), "cannot set Complete=True and Failed=true conditions")
	refuse(completes && target, "cannot set Complete=True and FailureTarget=true conditions")
	refuse(fails && !target, "cannot set Failed=True condition without the FailureTarget=true condition")
	refuse(completes && !met, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	refuse(met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	refuse(met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		refuse(jobCondition(old, t) && !jobCondition(j, t), fmt.Sprintf("cannot disable the terminal %s=True condition", t))
	}
	refuse(jobCondition(old, batchv1.JobSuccessCriteriaMet) && !met, "cannot disable the SuccessCriteriaMet=True condition")
	f.jobEnd(at, j, completes || fails, completes)
}

// jobEnd checks what must hold when a job is declared finished.
func (f *faults) jobEnd(at *field.Path, j *batchv1.Job, ends, completes bool) {
	s := &j.Status
	if s.CompletionTime != nil && !jobCondition(j, batchv1.JobComplete) {
		f.invalid(at.Child("completionTime"), s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
	}
	if completes && s.CompletionTime == nil {
		f.required(at.Child("completionTime"), "completionTime is required for Complete jobs")
	}
	if !ends {
		return
	}
	if s.Active > 0 {
		f.invalid(at.Child("active"), s.Active, "active>0 is invalid for finished job")
	}
	if n := derefOr(s.Terminating, 0); n > 0 {
		f.invalid(at.Child("terminating"), s.Terminating, "terminating>0 is invalid for finished job")
	}
	emptySuspended := derefOr(j.Spec.Suspend, false) && derefOr(j.Spec.Completions, 1) == 0
	if s.StartTime == nil && !emptySuspended {
		f.required(at.Child("startTime"), "startTime is required for finished job")
	}
	if u := s.UncountedTerminatedPods; u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
		f.invalid(at.Child("uncountedTerminatedPods"), u, "must be empty for finished job")
	}
}

var timeZonePart = regexp.MustCompile(`^[A-Za-z\.\-_0-9+]{1,14}$`)
