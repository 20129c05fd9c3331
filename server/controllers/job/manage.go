package job

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"orch/server/controllers/children"
)

// completionIndexEnv tells a container its completion index.
const completionIndexEnv = "JOB_COMPLETION_INDEX"

// maxGenerated is how long a generated name may be before its random end.
const maxGenerated = 58

// manage makes the active pods as many as they should be.
func (l *look) manage() {
	if suspended(l.Job) {
		l.Forget = true
		l.kill(l.active)
		return
	}
	active, want := len(l.active), l.wanted()
	if doomed := l.doomed(max(0, active-want)); len(doomed) > 0 {
		l.Forget = true
		l.kill(doomed[:min(len(doomed), maxBurst)])
		return
	}
	missing := want - active
	if replacesFailedOnly(l.Job) {
		missing -= int(l.terminating)
	}
	if missing > 0 {
		l.grow(min(missing, maxBurst))
	}
}

// wanted is how many pods should be active.
func (l *look) wanted() int {
	parallelism := int(*l.Job.Spec.Parallelism)
	switch completions := l.Job.Spec.Completions; {
	case completions != nil:
		return max(0, min(parallelism, int(*completions-l.succeeded)))
	case l.succeeded > 0:
		return len(l.active) // a work queue that is done: nobody starts any more
	}
	return parallelism
}

// kill plans the deletion of active pods.
func (l *look) kill(pods []*corev1.Pod) {
	l.Delete = append(l.Delete, pods...)
	l.terminating += int32(len(pods))
	for _, p := range pods {
		if children.Ready(p) {
			l.ready--
		}
	}
}

// doomed chooses at least n active pods to delete; all that repeat an index or
// have none that counts are among them.
func (l *look) doomed(n int) []*corev1.Pod {
	left := slices.Clone(l.active)
	var doomed []*corev1.Pod
	if indexed(l.Job) {
		doomed, left = l.surplusIndexes(left)
	}
	if len(doomed) < n {
		children.SortForDeletion(left, nil, l.now)
		doomed = append(doomed, left[:n-len(doomed)]...)
	}
	return doomed
}

func (l *look) surplusIndexes(pods []*corev1.Pod) (surplus, left []*corev1.Pod) {
	children.SortForDeletion(pods, nil, l.now)
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(indexOf(a), indexOf(b)) })
	for i, p := range pods {
		repeated := i+1 < len(pods) && indexOf(pods[i+1]) == indexOf(p)
		if !l.validIndex(p) || repeated {
			surplus = append(surplus, p)
		} else {
			left = append(left, p)
		}
	}
	return surplus, left
}

// grow plans n new pods, unless earlier failures ask for patience.
func (l *look) grow(n int) {
	if !perIndex(l.Job) {
		if wait := l.Plan.Failures.wait(l.now); wait > 0 {
			l.Again = children.Soonest(l.Again, wait)
			return
		}
	}
	if !indexed(l.Job) {
		for range n {
			l.Create = append(l.Create, l.newPod(noIndex))
		}
		return
	}
	taken := l.done.with(indexesOf(l.active)).union(l.lost)
	if replacesFailedOnly(l.Job) {
		taken = taken.with(indexesOf(slices.DeleteFunc(slices.Clone(l.Pods), func(p *corev1.Pod) bool { return !terminating(p) })))
	}
	var wait time.Duration
	for _, index := range taken.missing(n, int(*l.Job.Spec.Completions)) {
		if last := l.delayed[index]; last != nil {
			backoff := Failures{Count: sum(failures(last)) + 1, Last: finishTime(last)}
			if w := backoff.wait(l.now); w > 0 {
				wait = children.Soonest(wait, w)
				continue
			}
		}
		l.Create = append(l.Create, l.newPod(index))
	}
	l.Again = children.Soonest(l.Again, wait)
}

// newPod makes a pod of the job, for an index or none.
func (l *look) newPod(index int) *corev1.Pod {
	pod := children.FromTemplate(&l.Job.Spec.Template, l.Job, kind)
	if !tracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if index == noIndex {
		return pod
	}
	addIndexEnv(pod.Spec.InitContainers)
	addIndexEnv(pod.Spec.Containers)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = strconv.Itoa(index)
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = strconv.Itoa(index)
	if perIndex(l.Job) {
		l.rememberFailures(pod, l.delayed[index])
	}
	pod.Spec.Hostname = fmt.Sprintf("%s-%d", l.Job.Name, index)
	end := fmt.Sprintf("-%d-", index)
	pod.GenerateName = l.Job.Name[:min(len(l.Job.Name), maxGenerated-len(end))] + end
	return pod
}

// rememberFailures passes the failures of an index on to its next pod.
func (l *look) rememberFailures(pod, last *corev1.Pod) {
	var counted, ignored int32
	if last != nil {
		counted, ignored = failures(last)
		if l.judge(last).counts() {
			counted++
		} else {
			ignored++
		}
	}
	pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(counted))
	if ignored > 0 {
		pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(ignored))
	}
}

func addIndexEnv(containers []corev1.Container) {
	for i := range containers {
		c := &containers[i]
		if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == completionIndexEnv }) {
			continue
		}
		c.Env = append(c.Env, corev1.EnvVar{Name: completionIndexEnv, ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)},
		}})
	}
}
