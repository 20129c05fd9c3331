package kinds

import (
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func cronJobs() *registry.Resource {
	return entry[batchv1.CronJob, batchv1.CronJobList](batchv1.SchemeGroupVersion, "cronjobs", traits[*batchv1.CronJob]{
		ShortNames: []string{"cj"}, Categories: []string{"all"},
		Spec:    within(func(c *batchv1.CronJob) *batchv1.CronJobSpec { return &c.Spec }),
		Status:  within(func(c *batchv1.CronJob) *batchv1.CronJobStatus { return &c.Status }),
		Default: defaultCronJob,
		Warnings: func(c *batchv1.CronJob) []string {
			return workloadWarnings(c.Name, &c.Spec.JobTemplate.Spec.Template, "spec", "jobTemplate", "spec", "template")
		},
		Validate:            validateCronJob,
		UnconditionalUpdate: true,
		Columns: append(columns(
			nameColumn(),
			column("Schedule", "string", doc(batchv1.CronJobSpec{}, "schedule")),
			column("Timezone", "string", doc(batchv1.CronJobSpec{}, "timeZone")),
			column("Suspend", "boolean", doc(batchv1.CronJobSpec{}, "suspend")),
			column("Active", "integer", doc(batchv1.CronJobStatus{}, "active")),
			column("Last Schedule", "string", doc(batchv1.CronJobStatus{}, "lastScheduleTime")),
			ageColumn(),
		), containerColumns(doc(batchv1.JobSpec{}, "selector"))...),
		Row: cronJobRow,
	})
}

func defaultCronJob(c *batchv1.CronJob) {
	setZero(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	setDefault(&c.Spec.Suspend, false)
	setDefault(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	setDefault(&c.Spec.FailedJobsHistoryLimit, 1)
	defaultCronJobTemplate(&c.Spec.JobTemplate.Spec)
}

// defaultCronJobTemplate leaves the job's own defaults to the job, as upstream does.
func defaultCronJobTemplate(s *batchv1.JobSpec) {
	if s.PodFailurePolicy != nil {
		for i := range s.PodFailurePolicy.Rules {
			for j := range s.PodFailurePolicy.Rules[i].OnPodConditions {
				setZero(&s.PodFailurePolicy.Rules[i].OnPodConditions[j].Status, "True")
			}
		}
	}
	defaultPodTemplate(&s.Template)
}

func cronJobRow(c *batchv1.CronJob, now time.Time) []any {
	last := "<none>"
	if c.Status.LastScheduleTime != nil {
		last = since(*c.Status.LastScheduleTime, now)
	}
	suspended := "<unset>"
	if s := c.Spec.Suspend; s != nil {
		suspended = map[bool]string{true: "True", false: "False"}[*s]
	}
	job := &c.Spec.JobTemplate.Spec
	names, images := containerCells(job.Template.Spec.Containers)
	return []any{
		c.Name, c.Spec.Schedule, textOr(c.Spec.TimeZone, "<none>"), suspended, int64(len(c.Status.Active)), last,
		age(c, now), names, images, metav1.FormatLabelSelector(job.Selector),
	}
}
