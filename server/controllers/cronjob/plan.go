package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is what one look at a CronJob sees.
type Snapshot struct {
	CronJob *batchv1.CronJob
	Jobs    []*batchv1.Job         // those it controls
	Exists  func(name string) bool // a job of that name, whosever
}

// Plan is what is to be done now, and when to look again.
type Plan struct {
	Delete []*batchv1.Job
	Create *batchv1.Job
	Due    time.Time // the scheduled time of Create
	Status batchv1.CronJobStatus
	Events []Event
	Again  time.Duration
}

// Event is one that the CronJob gets.
type Event struct{ Type, Reason, Message string }

// look is a Plan in the making.
type look struct {
	Plan
	Snapshot
	now time.Time
}

// Reconcile plans the next step.
func Reconcile(now time.Time, s Snapshot) Plan {
	l := &look{Snapshot: s, now: now}
	l.Status = *s.CronJob.Status.DeepCopy()
	l.prune(batchv1.JobComplete, s.CronJob.Spec.SuccessfulJobsHistoryLimit)
	l.prune(batchv1.JobFailed, s.CronJob.Spec.FailedJobsHistoryLimit)
	l.follow()
	if s.CronJob.DeletionTimestamp == nil {
		l.schedule()
	}
	return l.Plan
}

func (l *look) say(kind, reason, format string, args ...any) {
	l.Events = append(l.Events, Event{kind, reason, fmt.Sprintf(format, args...)})
}

// ended is how a job has ended, "" when it has not.
func ended(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// prune deletes the oldest jobs of one end beyond the history limit.
func (l *look) prune(end batchv1.JobConditionType, limit *int32) {
	if limit == nil {
		return
	}
	jobs := slices.DeleteFunc(slices.Clone(l.Jobs), func(j *batchv1.Job) bool { return ended(j) != end })
	slices.SortFunc(jobs, func(a, b *batchv1.Job) int {
		x, y := a.Status.StartTime, b.Status.StartTime
		switch {
		case x == nil && y != nil:
			return 1
		case x != nil && y == nil:
			return -1
		case x != nil && !x.Equal(y):
			return x.Compare(y.Time)
		}
		return cmp.Compare(a.Name, b.Name)
	})
	for i := range len(jobs) - int(*limit) {
		l.remove(jobs[i])
	}
}

func (l *look) remove(j *batchv1.Job) {
	if j.DeletionTimestamp == nil {
		l.Delete = append(l.Delete, j)
	}
	l.forget(j.UID)
}

func (l *look) isActive(uid types.UID) bool {
	return slices.ContainsFunc(l.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

func (l *look) forget(uid types.UID) {
	l.Status.Active = slices.DeleteFunc(l.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

// follow brings the list of active jobs up to date.
func (l *look) follow() {
	present := map[types.UID]bool{}
	for _, j := range l.Jobs {
		present[j.UID] = true
		end := ended(j)
		if end == "" {
			if !l.isActive(j.UID) && !slices.Contains(l.Delete, j) && j.DeletionTimestamp == nil {
				l.say(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
			}
			continue
		}
		if l.isActive(j.UID) {
			l.forget(j.UID)
			l.say(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, end)
		}
		if at := j.Status.CompletionTime; end == batchv1.JobComplete && at != nil &&
			(l.Status.LastSuccessfulTime == nil || at.After(l.Status.LastSuccessfulTime.Time)) {
			l.Status.LastSuccessfulTime = at
		}
	}
	for _, r := range slices.Clone(l.Status.Active) {
		if !present[r.UID] && !l.Exists(r.Name) {
			l.say(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
			l.forget(r.UID)
		}
	}
}

// schedule starts what is due.
func (l *look) schedule() {
	cj := l.CronJob
	if zone := cj.Spec.TimeZone; zone != nil {
		if _, err := time.LoadLocation(*zone); err != nil {
			l.say(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", *zone, err)
			return
		}
	}
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return
	}
	if strings.Contains(cj.Spec.Schedule, "TZ") {
		l.say(corev1.EventTypeWarning, "UnsupportedSchedule", "CRON_TZ or TZ used in schedule %q is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", cj.Spec.Schedule)
	}
	schedule, err := parse(specOf(cj))
	if err != nil {
		l.say(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return
	}
	m, err := missedSince(cj, l.now, schedule, true)
	if err != nil {
		l.say(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", cj.Spec.Schedule, err)
		return
	}
	if m.latest != nil {
		if m.count > manyMissed {
			l.say(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
		}
		l.start(*m.latest)
	}
	after := cj
	if l.Create != nil { // the next time counts from this one
		after = cj.DeepCopy()
		after.Status.LastScheduleTime = &metav1.Time{Time: l.Due}
	}
	l.Again = untilNext(after, l.now, schedule)
}

// start plans the job of one scheduled time, unless a policy is against it.
func (l *look) start(due time.Time) {
	cj := l.CronJob
	name := jobName(cj, due)
	deadline := cj.Spec.StartingDeadlineSeconds
	switch {
	case deadline != nil && due.Add(time.Duration(*deadline)*time.Second).Before(l.now):
		l.say(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return
	case slices.ContainsFunc(l.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == name }),
		cj.Status.LastScheduleTime.Equal(&metav1.Time{Time: due}):
		return // it was started
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(l.Status.Active) > 0:
		l.say(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return
	case cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, j := range l.Jobs {
			if l.isActive(j.UID) {
				l.remove(j)
			}
		}
	}
	l.Create, l.Due = newJob(cj, name, due), due
}

// jobName is the same for each look at one scheduled time, so that none makes a
// second job of it.
func jobName(cj *batchv1.CronJob, due time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, due.Unix()/60)
}

func newJob(cj *batchv1.CronJob, name string, due time.Time) *batchv1.Job {
	template := cj.Spec.JobTemplate.DeepCopy()
	zone := time.UTC
	if cj.Spec.TimeZone != nil {
		if loaded, err := time.LoadLocation(*cj.Spec.TimeZone); err == nil {
			zone = loaded
		}
	}
	annotations := maps.Clone(template.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cj.Namespace, Name: name, Labels: template.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, kind)},
		},
		Spec: template.Spec,
	}
}
