package job

import (
	"cmp"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// How a pod's end is counted exactly once (KEP-2307): every pod has a
// finalizer. Its UID goes into status.uncountedTerminatedPods; when that is
// stored, the finalizer goes; when that has gone, the UID leaves the list and
// the counter rises, in one write. A crash in between leaves a state from which
// the next look goes on. Succeeded pods of indexed jobs are counted by their
// index at once.

// track enters the pods that have ended into the status and plans the removal
// of their finalizers.
func (l *look) track() {
	if indexed(l.Job) {
		l.Pods = slices.Clone(l.Pods)
		slices.SortStableFunc(l.Pods, func(a, b *corev1.Pod) int { return cmp.Compare(indexOf(a), indexOf(b)) })
	}
	Settle(&l.Status, l.Pods)
	list := l.Status.UncountedTerminatedPods
	indexes := 0
	for _, p := range l.Pods {
		if !tracked(p) || !l.mayForget(p) {
			continue
		}
		l.Untrack = append(l.Untrack, p)
		switch {
		case p.Status.Phase == corev1.PodSucceeded && !l.uncounted.failed[p.UID]:
			if indexed(l.Job) {
				if l.validIndex(p) && !l.before.has(indexOf(p)) {
					indexes++
				}
			} else if !l.uncounted.succeeded[p.UID] {
				list.Succeeded = append(list.Succeeded, p.UID)
			}
		case l.countsAsFailed(p) && !l.uncounted.failed[p.UID]:
			list.Failed = append(list.Failed, p.UID)
		}
		if indexes+len(list.Succeeded)+len(list.Failed) >= maxUncounted {
			l.Partial = true
			break
		}
	}
	if indexed(l.Job) {
		l.Status.Succeeded, l.Status.CompletedIndexes = int32(l.done.total()), l.done.String()
		if perIndex(l.Job) {
			lost := l.lost.String()
			l.Status.FailedIndexes = &lost
		}
	}
	l.announce()
}

// mayForget tells whether a pod has ended for the job, so that its finalizer
// can go.
func (l *look) mayForget(p *corev1.Pod) bool {
	if l.Job.DeletionTimestamp != nil || l.Finish != nil || p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !podFailed(l.Job, p) {
		return false
	}
	last := l.delayed[indexOf(p)]
	return last == nil || last.UID != p.UID
}

func (l *look) countsAsFailed(p *corev1.Pod) bool {
	cut := l.Finish != nil && l.Finish.Type != batchv1.JobSuccessCriteriaMet // a failing job takes all its pods along
	return (podFailed(l.Job, p) || cut) && (!indexed(l.Job) || l.validIndex(p)) && l.judge(p).counts()
}

// announce puts the interim condition into the status, and leaves in Finish the
// terminal one that follows.
func (l *look) announce() {
	if l.Finish == nil {
		return
	}
	switch l.Finish.Type {
	case batchv1.JobFailureTarget:
		l.Status.Conditions = append(l.Status.Conditions, *l.Finish)
		l.Finish = l.condition(batchv1.JobFailed, l.Finish.Reason, l.Finish.Message)
	case batchv1.JobSuccessCriteriaMet:
		if holds(l.Status.Conditions, batchv1.JobSuccessCriteriaMet) == nil {
			l.Status.Conditions = append(l.Status.Conditions, *l.Finish)
		}
		l.Finish = l.condition(batchv1.JobComplete, l.Finish.Reason, l.Finish.Message)
	}
}

// Settle counts the pods in the list of uncounted ones that have lost their
// finalizer. pods are those that are still there.
func Settle(status *batchv1.JobStatus, pods []*corev1.Pod) {
	waiting := map[types.UID]bool{}
	for _, p := range pods {
		if tracked(p) {
			waiting[p.UID] = true
		}
	}
	count := func(list *[]types.UID, counter *int32) {
		left := slices.DeleteFunc(slices.Clone(*list), func(uid types.UID) bool { return !waiting[uid] })
		*counter += int32(len(*list) - len(left))
		*list = left
		if len(left) == 0 {
			*list = nil
		}
	}
	list := status.UncountedTerminatedPods
	count(&list.Succeeded, &status.Succeeded)
	count(&list.Failed, &status.Failed)
}

// Enact sets the terminal condition once nothing is uncounted and no pod still
// ends, and tells whether it did.
func Enact(now time.Time, status *batchv1.JobStatus, finish *batchv1.JobCondition) bool {
	list := status.UncountedTerminatedPods
	if finish == nil || len(list.Succeeded)+len(list.Failed) > 0 || *status.Terminating > 0 {
		return false
	}
	stamp := metav1.NewTime(now).Rfc3339Copy()
	end := *finish
	end.LastProbeTime, end.LastTransitionTime = stamp, stamp
	status.Conditions = append(status.Conditions, end)
	if end.Type == batchv1.JobComplete {
		status.CompletionTime = &stamp
	}
	return true
}
