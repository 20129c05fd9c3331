package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/children"
)

// Revision is a template under its name.
type Revision struct {
	Name     string
	Template *corev1.PodTemplateSpec
}

// Snapshot is what one look at a set sees.
type Snapshot struct {
	Set     *appsv1.StatefulSet
	Pods    []*corev1.Pod // those it controls
	Current Revision      // of pods that are not updated yet
	Update  Revision      // of the present template
	Claim   func(name string) *corev1.PersistentVolumeClaim
}

// Plan is the next step.
type Plan struct {
	Retain      []*corev1.PersistentVolumeClaim // copies with other owners
	Conflicting []string                        // claims that others control
	Claimless   []*corev1.Pod                   // pending pods that lack a claim
	Repair      []*corev1.Pod                   // copies with their identity put right
	Delete      []*corev1.Pod
	Create      []*corev1.Pod
	Status      appsv1.StatefulSetStatus
	Again       time.Duration
}

// step is a Plan in the making.
type step struct {
	Plan
	Snapshot
	now       time.Time
	replicas  []place       // by ordinal
	missing   int           // places beyond these, of which nothing is there yet
	condemned []*corev1.Pod // beyond the range, highest first
	ordered   bool          // one pod at a time
}

// place is where a pod of the set belongs.
type place struct {
	ordinal int
	pod     *corev1.Pod // nil: there is none yet
}

// maxNew bounds the empty places that a step looks at, and so the pods that it
// makes: replicas may be any number.
const maxNew = 500

// Reconcile plans the next step. An ordered set takes only one, and none while
// a pod is not ready.
func Reconcile(now time.Time, s Snapshot) Plan {
	st := &step{Snapshot: s, now: now, ordered: s.Set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement}
	st.arrange()
	st.count()
	if s.Set.DeletionTimestamp == nil && st.fill() && st.shrink() {
		st.update()
	}
	status := &st.Status
	if want := *s.Set.Spec.Replicas; status.UpdatedReplicas == want && status.ReadyReplicas == want && status.Replicas == want {
		status.CurrentReplicas, status.CurrentRevision = want, status.UpdateRevision
	}
	return st.Plan
}

// arrange puts the pods in their places.
func (st *step) arrange() {
	there := map[int]*corev1.Pod{}
	for _, p := range st.Pods {
		if n := ordinalOf(p); inRange(st.Set, n) {
			there[n] = p
		} else if n >= 0 {
			st.condemned = append(st.condemned, p)
		}
	}
	for n, p := range there {
		st.replicas = append(st.replicas, place{n, p})
	}
	st.missing = int(*st.Set.Spec.Replicas) - len(there)
	for n, empty := firstOrdinal(st.Set), min(st.missing, maxNew); empty > 0; n++ {
		if there[n] == nil {
			st.replicas = append(st.replicas, place{ordinal: n})
			st.missing--
			empty--
		}
	}
	slices.SortFunc(st.replicas, func(a, b place) int { return cmp.Compare(a.ordinal, b.ordinal) })
	slices.SortFunc(st.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(ordinalOf(b), ordinalOf(a)) })
}

// count fills in the status from the pods as they are.
func (st *step) count() {
	status := &st.Status
	status.CurrentRevision, status.UpdateRevision = st.Current.Name, st.Update.Name
	for _, p := range st.Pods {
		if ordinalOf(p) < 0 {
			continue
		}
		status.Replicas++
		if runningReady(p) {
			status.ReadyReplicas++
			if st.available(p) {
				status.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(p) == st.Current.Name {
			status.CurrentReplicas++
		}
		if revisionOf(p) == st.Update.Name {
			status.UpdatedReplicas++
		}
	}
}

func runningReady(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && children.Ready(p)
}

// available tells whether a pod has been ready for long enough, and comes back
// when it will have been.
func (st *step) available(p *corev1.Pod) bool {
	ok, wait := children.Available(p, st.Set.Spec.MinReadySeconds, st.now)
	st.Again = children.Soonest(st.Again, wait)
	return ok
}

// unavailable tells the same of a pod that may not be there.
func (st *step) unavailable(p *corev1.Pod) bool {
	return p == nil || p.DeletionTimestamp != nil || !st.available(p)
}

// fill makes missing pods and mends those there are, lowest first. It is false
// when the step ends here.
func (st *step) fill() bool {
	for _, r := range st.replicas {
		if st.fillOne(r.ordinal, r.pod) && st.ordered {
			return false
		}
	}
	return true
}

// fillOne tells whether an ordered set must wait for this pod.
func (st *step) fillOne(ordinal int, p *corev1.Pod) (wait bool) {
	switch {
	case p == nil:
		pod := newPod(st.Set, st.revisionFor(ordinal), ordinal)
		if !st.hasStaleClaim(pod) {
			st.Create = append(st.Create, pod)
		}
		return true
	case p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded:
		if p.DeletionTimestamp == nil {
			st.Delete = append(st.Delete, p)
		}
		return true
	}
	st.retain(p)
	if p.Status.Phase == corev1.PodPending && p.DeletionTimestamp == nil && st.lacksClaim(p) {
		st.Claimless = append(st.Claimless, p)
	}
	if !identified(st.Set, p) || !mounted(st.Set, p) {
		repaired := p.DeepCopy()
		identify(repaired)
		mountClaims(st.Set, repaired)
		st.Repair = append(st.Repair, repaired)
	}
	return p.DeletionTimestamp != nil || !runningReady(p) || !st.available(p)
}

// revisionFor is the revision of a new pod: those below the partition stay at
// the current one.
func (st *step) revisionFor(ordinal int) Revision {
	strategy := st.Set.Spec.UpdateStrategy
	first := firstOrdinal(st.Set)
	if r := strategy.RollingUpdate; r != nil {
		if ordinal < first+partition(r) {
			return st.Current
		}
	} else if strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && ordinal < first+int(st.Set.Status.CurrentReplicas) {
		return st.Current
	}
	return st.Update
}

func partition(r *appsv1.RollingUpdateStatefulSetStrategy) int {
	if r == nil || r.Partition == nil {
		return 0
	}
	return int(*r.Partition)
}

// hasStaleClaim tells whether a claim still belongs to the pod's predecessor
// and will go with it.
func (st *step) hasStaleClaim(p *corev1.Pod) bool {
	policy := st.Set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil || policy.WhenScaled != appsv1.DeletePersistentVolumeClaimRetentionPolicyType {
		return false
	}
	for _, claim := range claimsOf(st.Set, p) {
		if existing := st.Claim(claim.Name); existing != nil && stale(existing, podKind, p) {
			return true
		}
	}
	return false
}

func (st *step) lacksClaim(p *corev1.Pod) bool {
	return slices.ContainsFunc(st.Set.Spec.VolumeClaimTemplates, func(t corev1.PersistentVolumeClaim) bool {
		return st.Claim(claimName(st.Set, t.Name, ordinalOf(p))) == nil
	})
}

// retain gives the claims of a pod the owners of the retention policy.
func (st *step) retain(p *corev1.Pod) {
	for _, t := range st.Set.Spec.VolumeClaimTemplates {
		claim := st.Claim(claimName(st.Set, t.Name, ordinalOf(p)))
		if claim == nil {
			continue
		}
		if changed := retained(claim, st.Set, p); changed != nil {
			st.Retain = append(st.Retain, changed)
			if conflicting(claim, st.Set, p) {
				st.Conflicting = append(st.Conflicting, claim.Name)
			}
		}
	}
}

// shrink removes condemned pods, highest first. It is false when the step ends
// here.
func (st *step) shrink() bool {
	for _, p := range st.condemned {
		st.retain(p)
	}
	sick := st.firstUnavailable()
	for _, p := range st.condemned {
		if p.DeletionTimestamp != nil {
			if st.ordered {
				return false
			}
			continue
		}
		if st.ordered && p != sick && (!runningReady(p) || !st.available(p)) {
			return false
		}
		st.Delete = append(st.Delete, p)
		if st.ordered {
			return false
		}
	}
	return true
}

// firstUnavailable is the lowest pod that is not available; it alone may be
// removed while it is so.
func (st *step) firstUnavailable() *corev1.Pod {
	for _, r := range st.replicas {
		if st.unavailable(r.pod) {
			return r.pod
		}
	}
	for _, p := range slices.Backward(st.condemned) {
		if st.unavailable(p) {
			return p
		}
	}
	return nil
}

// update deletes pods of an old revision, highest first, for their successors
// to be made from the new one, as far as so many may be unavailable.
func (st *step) update() {
	strategy := st.Set.Spec.UpdateStrategy
	if strategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return
	}
	room := maxUnavailable(strategy.RollingUpdate, int(*st.Set.Spec.Replicas)) - st.missing
	for _, r := range st.replicas {
		if st.unavailable(r.pod) {
			room--
		}
	}
	if !st.ordered {
		st.replaceBroken()
	}
	for _, r := range slices.Backward(st.replicas) {
		if room > 0 && st.outdated(r) && !slices.Contains(st.Delete, r.pod) {
			st.replace(r.pod)
			room--
		}
	}
}

// replaceBroken replaces pods of an old revision that are not available: in a
// set that knows no order nothing is lost by that, and without it a set whose
// pods are all broken would never get the template that mends them.
func (st *step) replaceBroken() {
	for _, r := range slices.Backward(st.replicas) {
		if st.outdated(r) && (!runningReady(r.pod) || !st.available(r.pod)) {
			st.replace(r.pod)
		}
	}
}

// outdated tells whether a pod, from the partition on, should be of the newest
// revision and is not.
func (st *step) outdated(r place) bool {
	return r.pod != nil && r.pod.DeletionTimestamp == nil && revisionOf(r.pod) != st.Update.Name &&
		r.ordinal >= firstOrdinal(st.Set)+partition(st.Set.Spec.UpdateStrategy.RollingUpdate)
}

// maxUnavailable is how many pods an update may take away; 1 unless the set
// says more.
func maxUnavailable(r *appsv1.RollingUpdateStatefulSetStrategy, replicas int) int {
	if r == nil || r.MaxUnavailable == nil {
		return 1
	}
	n, _ := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, replicas, false)
	return max(n, 1)
}

func (st *step) replace(p *corev1.Pod) {
	if !slices.Contains(st.Delete, p) {
		st.Delete = append(st.Delete, p)
		st.Status.CurrentReplicas = max(0, st.Status.CurrentReplicas-1)
	}
}
