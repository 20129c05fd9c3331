package kinds

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	"orch/server/registry"
)

// Labels of a job's pods from before the batch.kubernetes.io/ ones.
const (
	legacyJobName       = "job-name"
	legacyControllerUID = "controller-uid"
)

func jobs() *registry.Resource {
	return entry[batchv1.Job, batchv1.JobList](batchv1.SchemeGroupVersion, "jobs", traits[*batchv1.Job]{
		Categories:     []string{"all"},
		Spec:           within(func(j *batchv1.Job) *batchv1.JobSpec { return &j.Spec }),
		Status:         within(func(j *batchv1.Job) *batchv1.JobStatus { return &j.Status }),
		StatusValidate: validateJobStatus,
		Default:        defaultJob,
		PrepareCreate: func(_ context.Context, _ *registry.Registry, j *batchv1.Job) error {
			if !derefOr(j.Spec.ManualSelector, false) {
				defaulted := maps.Equal(j.Labels, j.Spec.Template.Labels)
				generateJobSelector(j)
				if defaulted { // a job without labels of its own has its pods'
					j.Labels = maps.Clone(j.Spec.Template.Labels)
				}
			}
			return nil
		},
		Validate:       validateJob,
		ValidateUpdate: validateJobUpdate,
		Warnings: func(j *batchv1.Job) []string {
			return workloadWarnings(j.Name, &j.Spec.Template, "spec", "template")
		},
		Fields: func(j *batchv1.Job) fields.Set {
			return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
		},
		UnconditionalUpdate: true,
		DefaultPropagation:  metav1.DeletePropagationOrphan,
		Columns: append(columns(
			nameColumn(),
			column("Status", "string", "Status of the job."),
			column("Completions", "string", doc(batchv1.JobStatus{}, "succeeded")),
			column("Duration", "string", "Time required to complete the job."),
			ageColumn(),
		), containerColumns(doc(batchv1.JobSpec{}, "selector"))...),
		Row: jobRow,
	})
}

func defaultJob(j *batchv1.Job) {
	if len(j.Labels) == 0 {
		j.Labels = overlay(nil, j.Spec.Template.Labels)
	}
	defaultJobSpec(&j.Spec)
}

func defaultJobSpec(s *batchv1.JobSpec) {
	if s.Completions == nil && s.Parallelism == nil {
		setDefault(&s.Completions, 1)
	}
	setDefault(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		setDefault(&s.BackoffLimit, math.MaxInt32)
	}
	setDefault(&s.BackoffLimit, 6)
	setDefault(&s.CompletionMode, batchv1.NonIndexedCompletion)
	setDefault(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		setDefault(&s.PodReplacementPolicy, batchv1.Failed)
		for i := range s.PodFailurePolicy.Rules {
			for j := range s.PodFailurePolicy.Rules[i].OnPodConditions {
				setZero(&s.PodFailurePolicy.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
			}
		}
	}
	setDefault(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	setDefault(&s.ManualSelector, false)
	defaultPodTemplate(&s.Template)
}

// generateJobSelector makes the pods of j recognizable by the job's name and
// UID, and selects them by the latter.
func generateJobSelector(j *batchv1.Job) {
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = make(map[string]string, 4)
	}
	for label, value := range map[string]string{
		legacyJobName: j.Name, batchv1.JobNameLabel: j.Name,
		legacyControllerUID: string(j.UID), batchv1.ControllerUidLabel: string(j.UID),
	} {
		if _, ok := t.Labels[label]; !ok {
			t.Labels[label] = value
		}
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = make(map[string]string, 1)
	}
	if _, ok := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func jobRow(j *batchv1.Job, now time.Time) []any {
	took := ""
	if start := j.Status.StartTime; start != nil {
		end := now
		if j.Status.CompletionTime != nil {
			end = j.Status.CompletionTime.Time
		}
		took = duration.HumanDuration(end.Sub(start.Time))
	}
	names, images := containerCells(j.Spec.Template.Spec.Containers)
	return []any{
		j.Name, jobState(j), completionsCell(j), took, age(j, now),
		names, images, metav1.FormatLabelSelector(j.Spec.Selector),
	}
}

func completionsCell(j *batchv1.Job) string {
	parallelism := derefOr(j.Spec.Parallelism, 0)
	switch {
	case j.Spec.Completions != nil:
		return fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
	case parallelism > 1:
		return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, parallelism)
	}
	return fmt.Sprintf("%d/1", j.Status.Succeeded)
}

func jobState(j *batchv1.Job) string {
	switch {
	case jobCondition(j, batchv1.JobComplete):
		return "Complete"
	case jobCondition(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case jobCondition(j, batchv1.JobSuspended):
		return "Suspended"
	case jobCondition(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case jobCondition(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCondition(j *batchv1.Job, t batchv1.JobConditionType) bool {
	for _, c := range j.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
