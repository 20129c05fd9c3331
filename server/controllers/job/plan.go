package job

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/children"
)

const (
	maxBurst     = 500 // most pods that one look makes or deletes
	maxUncounted = 500 // most pods in status.uncountedTerminatedPods
)

// Snapshot is what one look at a job sees.
type Snapshot struct {
	Job      *batchv1.Job
	Pods     []*corev1.Pod // those it controls
	Failures Failures
}

// Plan is the next step. Its order matters: pods are deleted and made, the
// status is written, finalizers are taken off the pods that it accounts for,
// and then Settle counts those.
type Plan struct {
	Delete  []*corev1.Pod
	Forget  bool          // the deleted pods are not to count as failed
	Create  []*corev1.Pod // new pods
	Status  batchv1.JobStatus
	Untrack []*corev1.Pod // lose their finalizer once the status is written
	Finish  *batchv1.JobCondition
	Partial bool // more pods wait to be accounted for
	Events  []Event
	Again   time.Duration

	Failures Failures
}

// Event is one that the job gets.
type Event struct{ Type, Reason, Message string }

// look is a Plan in the making.
type look struct {
	Plan
	Snapshot
	now         time.Time
	active      []*corev1.Pod
	ready       int32
	terminating int32
	succeeded   int32
	failed      int32
	uncounted   struct{ succeeded, failed map[types.UID]bool }

	// Of indexed jobs.
	before, done intervals             // succeeded indexes, as the status has them and now
	lost         intervals             // failed ones
	delayed      map[int]*corev1.Pod   // failed pods that stay until their index has a new one
	verdicts     map[types.UID]verdict // memo of judge
}

// Reconcile plans the next step of a job that is not finished.
func Reconcile(now time.Time, s Snapshot) Plan {
	l := &look{Snapshot: s, now: now, verdicts: map[types.UID]verdict{}}
	l.Status = *s.Job.Status.DeepCopy()
	l.count()
	l.decide()
	switch {
	case l.Finish != nil:
		l.kill(l.active)
	case s.Job.DeletionTimestamp == nil:
		l.manage()
		l.conclude(true)
	default:
		l.conclude(false)
	}
	active := int32(len(l.active) - len(l.Delete) + len(l.Create))
	l.Status.Active, l.Status.Ready, l.Status.Terminating = active, &l.ready, &l.terminating
	l.track()
	return l.Plan
}

func suspended(j *batchv1.Job) bool { return j.Spec.Suspend != nil && *j.Spec.Suspend }

// replacesFailedOnly tells whether a pod that is being deleted is replaced only
// when it has ended.
func replacesFailedOnly(j *batchv1.Job) bool {
	return j.Spec.PodFailurePolicy != nil || j.Spec.PodReplacementPolicy != nil && *j.Spec.PodReplacementPolicy == batchv1.Failed
}

func podFailed(j *batchv1.Job, p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed ||
		!replacesFailedOnly(j) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

func terminating(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func (l *look) judge(p *corev1.Pod) verdict {
	v, ok := l.verdicts[p.UID]
	if !ok {
		v = judge(l.Job.Spec.PodFailurePolicy, p)
		l.verdicts[p.UID] = v
	}
	return v
}

// valid tells whether a pod's end is still to be accounted for.
func (l *look) valid(p *corev1.Pod) bool {
	return tracked(p) && (!indexed(l.Job) || l.validIndex(p))
}

func (l *look) validIndex(p *corev1.Pod) bool {
	i := indexOf(p)
	return i != noIndex && i < int(*l.Job.Spec.Completions)
}

// count takes stock of the pods.
func (l *look) count() {
	if l.Status.UncountedTerminatedPods == nil {
		l.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	l.uncounted.succeeded = setOf(l.Status.UncountedTerminatedPods.Succeeded)
	l.uncounted.failed = setOf(l.Status.UncountedTerminatedPods.Failed)
	var newlySucceeded, newlyFailed []*corev1.Pod
	counting := int32(0)
	for _, p := range l.Pods {
		if children.Active(p) {
			l.active = append(l.active, p)
			if children.Ready(p) {
				l.ready++
			}
		}
		if terminating(p) {
			l.terminating++
		}
		switch {
		case !l.valid(p):
		case p.Status.Phase == corev1.PodSucceeded && !l.uncounted.succeeded[p.UID]:
			newlySucceeded = append(newlySucceeded, p)
		case podFailed(l.Job, p) && !l.uncounted.failed[p.UID]:
			newlyFailed = append(newlyFailed, p)
			if l.judge(p).counts() {
				counting++
			}
		}
	}
	l.succeeded = l.Status.Succeeded + int32(len(newlySucceeded)+len(l.uncounted.succeeded))
	l.failed = l.Status.Failed + counting + int32(len(l.uncounted.failed))
	l.Plan.Failures = l.Snapshot.Failures.after(newlySucceeded, newlyFailed)
	if l.Status.StartTime == nil && !suspended(l.Job) {
		l.Status.StartTime = l.stamp()
	}
}

// stamp is now as the wire tells it.
func (l *look) stamp() *metav1.Time {
	stamp := metav1.NewTime(l.now).Rfc3339Copy()
	return &stamp
}

func setOf(uids []types.UID) map[types.UID]bool {
	out := make(map[types.UID]bool, len(uids))
	for _, uid := range uids {
		out[uid] = true
	}
	return out
}

func find(conditions []batchv1.JobCondition, kind batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return &conditions[i]
		}
	}
	return nil
}

func holds(conditions []batchv1.JobCondition, kind batchv1.JobConditionType) *batchv1.JobCondition {
	if c := find(conditions, kind); c != nil && c.Status == corev1.ConditionTrue {
		return c
	}
	return nil
}

func (l *look) condition(kind batchv1.JobConditionType, reason, message string) *batchv1.JobCondition {
	return conditionAt(l.now, kind, corev1.ConditionTrue, reason, message)
}

func conditionAt(now time.Time, kind batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) *batchv1.JobCondition {
	stamp := metav1.NewTime(now).Rfc3339Copy()
	return &batchv1.JobCondition{Type: kind, Status: status, Reason: reason, Message: message, LastProbeTime: stamp, LastTransitionTime: stamp}
}

// decide finds out whether the job's end is already sure, and sets Finish.
func (l *look) decide() {
	l.countIndexes()
	spec := &l.Job.Spec
	fail := func(reason, message string) { l.Finish = l.condition(batchv1.JobFailureTarget, reason, message) }
	switch target := holds(l.Status.Conditions, batchv1.JobFailureTarget); {
	case holds(l.Status.Conditions, batchv1.JobSuccessCriteriaMet) != nil:
		l.Finish = holds(l.Status.Conditions, batchv1.JobSuccessCriteriaMet).DeepCopy()
	case target != nil:
		l.Finish = l.condition(batchv1.JobFailed, target.Reason, target.Message)
	case l.failingPod() != "":
		fail(batchv1.JobReasonPodFailurePolicy, l.failingPod())
	case l.failed > *spec.BackoffLimit || l.tooManyRestarts():
		fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case l.pastDeadline():
		fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	case perIndex(l.Job) && spec.MaxFailedIndexes != nil && l.lost.total() > int(*spec.MaxFailedIndexes):
		fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
	case perIndex(l.Job) && l.lost.total() > 0 && l.lost.total()+l.done.total() >= int(*spec.Completions):
		fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
	case indexed(l.Job):
		if message, met := succeeds(spec.SuccessPolicy, int(*spec.Completions), l.done); met {
			l.Finish = l.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, message)
		}
	}
}

// failingPod is why a pod fails the whole job by its failure policy, or "".
func (l *look) failingPod() string {
	if l.Job.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, p := range l.Pods {
		if podFailed(l.Job, p) {
			if v := l.judge(p); v.action == batchv1.PodFailurePolicyActionFailJob {
				return v.reason
			}
		}
	}
	return ""
}

// tooManyRestarts counts restarts in place against the backoff limit.
func (l *look) tooManyRestarts() bool {
	if l.Job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, p := range l.Pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, s := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			restarts += s.RestartCount
		}
	}
	return restarts > 0 && restarts >= *l.Job.Spec.BackoffLimit
}

// pastDeadline tells whether activeDeadlineSeconds has passed, and comes back
// when it will have.
func (l *look) pastDeadline() bool {
	if l.Job.Spec.ActiveDeadlineSeconds == nil || l.Status.StartTime == nil || suspended(l.Job) {
		return false
	}
	left := time.Duration(*l.Job.Spec.ActiveDeadlineSeconds)*time.Second - l.now.Sub(l.Status.StartTime.Time)
	if left > 0 {
		l.Again = children.Soonest(l.Again, left)
	}
	return left <= 0
}

// countIndexes finds the indexes that have succeeded and failed.
func (l *look) countIndexes() {
	if !indexed(l.Job) {
		return
	}
	completions := int(*l.Job.Spec.Completions)
	l.before = parseIndexes(l.Status.CompletedIndexes, completions)
	succeeded, failed := map[int]bool{}, map[int]bool{}
	for _, p := range l.Pods {
		switch {
		case !l.valid(p):
		case p.Status.Phase == corev1.PodSucceeded:
			succeeded[indexOf(p)] = true
		case perIndex(l.Job) && l.failsIndex(p):
			failed[indexOf(p)] = true
		}
	}
	l.done = l.before.with(succeeded)
	l.succeeded = int32(l.done.total())
	if perIndex(l.Job) {
		if l.Status.FailedIndexes != nil {
			l.lost = parseIndexes(*l.Status.FailedIndexes, completions)
		}
		l.lost = l.lost.with(failed)
		l.delay()
	}
}

// failsIndex tells whether a pod's failure is the last that its index may have.
func (l *look) failsIndex(p *corev1.Pod) bool {
	if !podFailed(l.Job, p) {
		return false
	}
	v := l.judge(p)
	counted, _ := failures(p)
	return v.action == batchv1.PodFailurePolicyActionFailIndex || v.counts() && counted >= *l.Job.Spec.BackoffLimitPerIndex
}

// delay keeps, for each index that has no pod now, its last failed pod: it
// remembers how often the index has failed.
func (l *look) delay() {
	l.delayed = map[int]*corev1.Pod{}
	active := indexesOf(l.active)
	for _, p := range l.Pods {
		i := indexOf(p)
		if !l.valid(p) || !podFailed(l.Job, p) || l.done.has(i) || l.lost.has(i) || active[i] {
			continue
		}
		if last := l.delayed[i]; last == nil || sum(failures(last)) <= sum(failures(p)) && !finishTime(p).Before(finishTime(last)) {
			l.delayed[i] = p
		}
	}
}

func sum(a, b int32) int32 { return a + b }

// conclude completes the job, or keeps its Suspended condition.
func (l *look) conclude(managed bool) {
	active := len(l.active) - len(l.Delete) + len(l.Create)
	completions := l.Job.Spec.Completions
	if active == 0 && (completions == nil && l.succeeded > 0 || completions != nil && l.succeeded >= *completions) {
		l.Finish = l.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
		return
	}
	switch {
	case !managed:
	case suspended(l.Job):
		if l.setSuspended(corev1.ConditionTrue, "JobSuspended", "Job suspended") {
			l.Events = append(l.Events, Event{corev1.EventTypeNormal, "Suspended", "Job suspended"})
			l.Status.StartTime = nil
		}
	default:
		if l.setSuspended(corev1.ConditionFalse, "JobResumed", "Job resumed") {
			l.Events = append(l.Events, Event{corev1.EventTypeNormal, "Resumed", "Job resumed"})
			l.Status.StartTime = l.stamp()
		}
	}
}

// setSuspended tells whether the condition has changed. A job that never was
// suspended gets none.
func (l *look) setSuspended(status corev1.ConditionStatus, reason, message string) bool {
	c := find(l.Status.Conditions, batchv1.JobSuspended)
	wanted := conditionAt(l.now, batchv1.JobSuspended, status, reason, message)
	switch {
	case c == nil && status == corev1.ConditionFalse:
		return false
	case c == nil:
		l.Status.Conditions = append(l.Status.Conditions, *wanted)
		return true
	case c.Status == status && c.Reason == reason && c.Message == message:
		return false
	}
	*c = *wanted
	return true
}

func (e Event) String() string { return fmt.Sprintf("%s %s %s", e.Type, e.Reason, e.Message) }
