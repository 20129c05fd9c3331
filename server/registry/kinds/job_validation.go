package kinds

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxIndexedParallelism = 100_000
	maxFailedIndexes      = 100_000
	// Above so many completions a backoff limit per index costs too much status.
	manyCompletions         = 100_000
	manyCompletionsParallel = 10_000
)

func validateJob(j *batchv1.Job) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.generatedSelector(at, j)
	f.jobSpec(at, &j.Spec)
	if j.Spec.Selector == nil {
		f.required(at.Child("selector"), "")
	} else {
		f.selector(at.Child("selector"), j.Spec.Selector)
	}
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(labels.Set(j.Spec.Template.Labels)) {
		f.invalid(at.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`")
	}
	if n := derefOr(j.Spec.Completions, 0); indexed(&j.Spec) && n > 0 {
		if host := fmt.Sprintf("%s-%d", j.Name, n-1); len(validation.IsDNS1123Label(host)) > 0 {
			f.invalid(field.NewPath("metadata", "name"), j.Name, "will not able to create pod with invalid DNS label: "+host)
		}
	}
	return f.list
}

func indexed(s *batchv1.JobSpec) bool {
	return derefOr(s.CompletionMode, batchv1.NonIndexedCompletion) == batchv1.IndexedCompletion
}

// generatedSelector: whoever does not choose a selector cannot meddle with it.
func (f *faults) generatedSelector(at *field.Path, j *batchv1.Job) {
	if derefOr(j.Spec.ManualSelector, false) || j.Spec.Selector == nil {
		return
	}
	expected := labels.Set{
		legacyControllerUID: string(j.UID), batchv1.ControllerUidLabel: string(j.UID),
		legacyJobName: j.Name, batchv1.JobNameLabel: j.Name,
	}
	path := at.Child("template", "metadata", "labels")
	for _, label := range sortedKeys(expected) {
		if have, ok := j.Spec.Template.Labels[label]; !ok {
			f.required(path.Key(label), fmt.Sprintf("must be '%s'", expected[label]))
		} else if have != expected[label] {
			f.invalid(path.Key(label), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", expected[label]))
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(expected) {
		f.invalid(at.Child("selector"), j.Spec.Selector, "`selector` not auto-generated")
	}
}

func (f *faults) jobSpec(at *field.Path, s *batchv1.JobSpec) {
	for _, n := range []struct {
		name  string
		value *int32
	}{
		{"parallelism", s.Parallelism}, {"completions", s.Completions}, {"backoffLimit", s.BackoffLimit},
		{"ttlSecondsAfterFinished", s.TTLSecondsAfterFinished}, {"backoffLimitPerIndex", s.BackoffLimitPerIndex},
		{"maxFailedIndexes", s.MaxFailedIndexes},
	} {
		f.notNegative(at.Child(n.name), int64(derefOr(n.value, 0)))
	}
	f.notNegative(at.Child("activeDeadlineSeconds"), derefOr(s.ActiveDeadlineSeconds, 0))
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		f.required(at.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
	}
	if m := s.ManagedBy; m != nil {
		f.join(validation.IsDomainPrefixedPath(at.Child("managedBy"), *m))
		if len(*m) > 63 {
			f.add(field.TooLong(at.Child("managedBy"), "", 63))
		}
	}
	f.completionMode(at, s)
	if p := s.PodFailurePolicy; p != nil {
		f.podFailurePolicy(at.Child("podFailurePolicy", "rules"), s)
	}
	if s.SuccessPolicy != nil {
		f.successPolicy(at.Child("successPolicy"), s)
	}
	if p := s.PodReplacementPolicy; p != nil {
		if s.PodFailurePolicy != nil {
			supports(f, at.Child("podReplacementPolicy"), *p, batchv1.Failed)
		} else {
			supports(f, at.Child("podReplacementPolicy"), *p, batchv1.Failed, batchv1.TerminatingOrFailed)
		}
	}
	f.podTemplate(at.Child("template"), &s.Template)
	f.jobRestartPolicy(at.Child("template", "spec", "restartPolicy"), s)
}

func (f *faults) jobRestartPolicy(at *field.Path, s *batchv1.JobSpec) {
	switch p := s.Template.Spec.RestartPolicy; p {
	case corev1.RestartPolicyAlways, "":
		f.required(at, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))
	case corev1.RestartPolicyNever:
	case corev1.RestartPolicyOnFailure:
		if s.PodFailurePolicy != nil {
			f.invalid(at, p, `only "Never" is supported when podFailurePolicy is specified`)
		}
	default:
		supports(f, at, p, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	}
}

func (f *faults) completionMode(at *field.Path, s *batchv1.JobSpec) {
	if s.CompletionMode != nil {
		supports(f, at.Child("completionMode"), *s.CompletionMode, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)
	}
	if !indexed(s) {
		if derefOr(s.CompletionMode, batchv1.NonIndexedCompletion) != batchv1.NonIndexedCompletion {
			return
		}
		if s.BackoffLimitPerIndex != nil {
			f.invalid(at.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode")
		}
		if s.MaxFailedIndexes != nil {
			f.invalid(at.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "requires indexed completion mode")
		}
		return
	}
	if s.Completions == nil {
		f.required(at.Child("completions"), "when completion mode is Indexed")
		return
	}
	parallel, failed := derefOr(s.Parallelism, 0), derefOr(s.MaxFailedIndexes, 0)
	if parallel > maxIndexedParallelism {
		f.invalid(at.Child("parallelism"), parallel, fmt.Sprintf("must be less than or equal to %d when completion mode is Indexed", maxIndexedParallelism))
	}
	if failed > *s.Completions {
		f.invalid(at.Child("maxFailedIndexes"), failed, "must be less than or equal to completions")
	}
	if failed > maxFailedIndexes {
		f.invalid(at.Child("maxFailedIndexes"), failed, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes))
	}
	if *s.Completions <= manyCompletions || s.BackoffLimitPerIndex == nil {
		return
	}
	if s.MaxFailedIndexes == nil {
		f.required(at.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions))
	}
	const tooMany = "must be less than or equal to %d when completions are above %d and used with backoff limit per index"
	if parallel > manyCompletionsParallel {
		f.invalid(at.Child("parallelism"), parallel, fmt.Sprintf(tooMany, manyCompletionsParallel, manyCompletions))
	}
	if failed > manyCompletionsParallel {
		f.invalid(at.Child("maxFailedIndexes"), failed, fmt.Sprintf(tooMany, manyCompletionsParallel, manyCompletions))
	}
}
