package cronjob

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/harness"
)

func ptr[T any](v T) *T { return &v }

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func cronJob(schedule string, change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	template := harness.Template("c")
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	cj := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "c", UID: "cj", CreationTimestamp: metav1.NewTime(noon)},
		Spec: batchv1.CronJobSpec{Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent,
			SuccessfulJobsHistoryLimit: ptr(int32(1)), FailedJobsHistoryLimit: ptr(int32(1)),
			JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"l": "v"}}, Spec: batchv1.JobSpec{Template: template}}},
	}
	for _, c := range change {
		c(cj)
	}
	return cj
}

func job(name string, started time.Time, end batchv1.JobConditionType) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, UID: types.UID(name)}}
	j.Status.StartTime = &metav1.Time{Time: started}
	if end != "" {
		j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue}}
		j.Status.CompletionTime = &metav1.Time{Time: started.Add(time.Minute)}
	}
	return j
}

func active(jobs ...*batchv1.Job) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) {
		for _, j := range jobs {
			cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{Name: j.Name, Namespace: j.Namespace, UID: j.UID})
		}
	}
}

func TestReconcile(t *testing.T) {
	running := job("c-running", noon, "")
	deadline := func(seconds int64) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = &seconds }
	}
	policy := func(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = p }
	}
	zone := func(name string) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Spec.TimeZone = &name }
	}
	last := func(at time.Time) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = &metav1.Time{Time: at} }
	}
	at := func(hour, minute int) time.Time { return time.Date(2026, 5, 4, hour, minute, 0, 0, time.UTC) }
	for _, c := range []struct {
		name   string
		cj     *batchv1.CronJob
		jobs   []*batchv1.Job
		now    time.Time
		due    time.Time // zero: none is made
		remove string
		event  string
		again  time.Duration
	}{
		{"not yet", cronJob("0 * * * *"), nil, at(12, 59), time.Time{}, "[]", "", time.Minute + late},
		{"due", cronJob("0 * * * *"), nil, at(13, 0), at(13, 0), "[]", "", time.Hour + late},
		{"a little late", cronJob("0 * * * *"), nil, at(13, 10), at(13, 0), "[]", "", 50*time.Minute + late},
		{"was started", cronJob("0 * * * *", last(at(13, 0))), nil, at(13, 10), time.Time{}, "[]", "", 50*time.Minute + late},
		{"only the last of the missed", cronJob("0 * * * *"), nil, at(17, 30), at(17, 0), "[]", "", 30*time.Minute + late},
		{"too late", cronJob("0 * * * *", deadline(60)), nil, at(13, 10), time.Time{}, "[]", "", 50*time.Minute + late},
		{"in time", cronJob("0 * * * *", deadline(601)), nil, at(13, 10), at(13, 0), "[]", "", 50*time.Minute + late},
		{"hundreds missed", cronJob("* * * * *"), nil, at(15, 0), at(15, 0), "[]",
			"TooManyMissedTimes too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew", time.Minute + late},
		{"suspended", cronJob("0 * * * *", func(cj *batchv1.CronJob) { cj.Spec.Suspend = ptr(true) }), nil, at(13, 0), time.Time{}, "[]", "", 0},
		{"forbidden", cronJob("0 * * * *", policy(batchv1.ForbidConcurrent), active(running)), []*batchv1.Job{running}, at(13, 0), time.Time{}, "[]",
			"JobAlreadyActive Not starting job because prior execution is running and concurrency policy is Forbid", time.Hour + late},
		{"replaced", cronJob("0 * * * *", policy(batchv1.ReplaceConcurrent), active(running)), []*batchv1.Job{running}, at(13, 0), at(13, 0), "[c-running]", "", time.Hour + late},
		{"beside", cronJob("0 * * * *", active(running)), []*batchv1.Job{running}, at(13, 0), at(13, 0), "[]", "", time.Hour + late},
		{"in its zone", cronJob("0 15 * * *", zone("Europe/Zurich")), nil, at(13, 0), at(13, 0), "[]", "", 24*time.Hour + late},
		{"in no zone", cronJob("0 15 * * *", zone("Mars/Base")), nil, at(13, 0), time.Time{}, "[]", `UnknownTimeZone invalid timeZone: "Mars/Base": unknown time zone Mars/Base`, 0},
		{"makes no sense", cronJob("x"), nil, at(13, 0), time.Time{}, "[]", `UnparseableSchedule unparseable schedule: "x" : expected exactly 5 fields, found 1: [x]`, 0},
		{"one has gone", cronJob("0 * * * *", active(running)), nil, at(12, 30), time.Time{}, "[]", "MissingJob Active job went missing: c-running", 30*time.Minute + late},
		{"one is unknown", cronJob("0 * * * *"), []*batchv1.Job{running}, at(12, 30), time.Time{}, "[]",
			"UnexpectedJob Saw a job that the controller did not create or forgot: c-running", 30*time.Minute + late},
		{"history", cronJob("0 * * * *"), []*batchv1.Job{
			job("c-3", at(9, 0), batchv1.JobComplete), job("c-1", at(7, 0), batchv1.JobComplete), job("c-2", at(8, 0), batchv1.JobComplete),
			job("c-4", at(10, 0), batchv1.JobFailed),
		}, at(12, 30), time.Time{}, "[c-1 c-2]", "", 30*time.Minute + late},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan := Reconcile(c.now, Snapshot{CronJob: c.cj, Jobs: c.jobs, Exists: func(string) bool { return false }})
			if !plan.Due.Equal(c.due) || (plan.Create != nil) != !c.due.IsZero() {
				t.Errorf("due %v, want %v", plan.Due, c.due)
			}
			names := []string{}
			for _, j := range plan.Delete {
				names = append(names, j.Name)
			}
			if fmt.Sprint(names) != c.remove {
				t.Errorf("deletes %v, want %s", names, c.remove)
			}
			var said string
			for _, e := range plan.Events {
				said += e.Reason + " " + e.Message
			}
			if said != c.event {
				t.Errorf("events %q, want %q", said, c.event)
			}
			if plan.Again != c.again {
				t.Errorf("again in %s, want %s", plan.Again, c.again)
			}
		})
	}
}

// TestStartsJobs runs the controller with a clock that moves a minute at a time.
func TestStartsJobs(t *testing.T) {
	h := harness.New(t)
	var minutes atomic.Int64
	begin := time.Now().Truncate(time.Minute).Add(30 * time.Second)
	now := func() time.Time { return begin.Add(time.Duration(minutes.Load()) * time.Minute) }
	h.Run(Controller(h.Registry, h.Events, now))
	harness.Create(h, cronJob("* * * * *", func(cj *batchv1.CronJob) { cj.UID = "" }))
	minutes.Add(1)
	harness.Change(h, "c", func(cj *batchv1.CronJob) { metav1.SetMetaDataAnnotation(&cj.ObjectMeta, "wake", "1") })
	cj := harness.Wait(h, "c", "an active job", func(cj *batchv1.CronJob) bool { return len(cj.Status.Active) == 1 })
	j := harness.Get[*batchv1.Job](h, cj.Status.Active[0].Name)
	if !metav1.IsControlledBy(j, cj) || j.Labels["l"] != "v" || j.Annotations[batchv1.CronJobScheduledTimestampAnnotation] == "" {
		t.Errorf("job %+v", j.ObjectMeta)
	}
	harness.ChangeStatus(h, j.Name, func(j *batchv1.Job) {
		at := metav1.NewTime(now())
		j.Status.StartTime, j.Status.CompletionTime = &at, &at
		j.Status.Conditions = []batchv1.JobCondition{
			{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue}, {Type: batchv1.JobComplete, Status: corev1.ConditionTrue},
		}
	})
	harness.Wait(h, "c", "its completion", func(cj *batchv1.CronJob) bool {
		return len(cj.Status.Active) == 0 && cj.Status.LastSuccessfulTime != nil
	})
	minutes.Add(1)
	harness.Change(h, "c", func(cj *batchv1.CronJob) { cj.Annotations["wake"] = "2" })
	harness.WaitAll(h, "a second job", func(jobs []*batchv1.Job) bool { return len(jobs) == 2 })
	if want := "Normal SawCompletedJob Saw completed job: " + j.Name + ", condition: Complete"; !slices.Contains(h.Events.All(), want) {
		t.Errorf("no event %q in\n%s", want, h.Events)
	}
}
