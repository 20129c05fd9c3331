package scheduler

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// candidate is a node on which the pod would fit once victims are gone.
type candidate struct {
	node       *node
	victims    []*pod // by falling priority
	violations int    // victims whose disruption budget does not allow it
}

// What is said of nodes where deleting pods cannot help, and of nodes where none
// could be deleted.
const (
	preemptionNotHelpful = "Preemption is not helpful for scheduling"
	noVictims            = "No preemption victims found for incoming pod"
)

// ineligible says why the pod must not preempt now; "": it may.
func (s *Scheduler) ineligible(p *pod, d *diagnosis) string {
	if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever {
		return "not eligible due to preemptionPolicy=Never."
	}
	if s.victimsLeaving(p, d) {
		return "not eligible due to a terminating pod on the nominated node."
	}
	return ""
}

// preempt looks for the node where the least harm makes room for the pod of a.
// When there is none, the text explains it as kube-scheduler does.
func (s *Scheduler) preempt(a *attempt, d *diagnosis) (*candidate, string) {
	budgets := s.door.Budgets()
	refusals := map[string]*refusal{}
	var best *candidate
	for _, n := range s.cluster.nodes {
		r := d.refusals[n.Name]
		if r == nil || r.unresolvable {
			refusals[n.Name] = refused(preemptionNotHelpful)
			continue
		}
		found, why := s.victims(a, n, budgets)
		if found == nil {
			refusals[n.Name] = why
			continue
		}
		if best == nil || less(found, best) {
			best = found
		}
	}
	if best == nil {
		after := diagnosis{nodes: d.nodes, refusals: refusals}
		return nil, after.message()
	}
	return best, ""
}

// victimsLeaving tells whether preempted pods are still leaving the node that
// was nominated for p: then waiting is enough, unless it is no longer suitable.
func (s *Scheduler) victimsLeaving(p *pod, d *diagnosis) bool {
	n := s.cluster.byName[p.Status.NominatedNodeName]
	if n == nil {
		return false
	}
	if r := d.refusals[n.Name]; d.before != "" || r != nil && r.unresolvable {
		return false
	}
	return slices.ContainsFunc(n.pods, func(o *pod) bool { return o.priority < p.priority && preempted(o) })
}

// preempted tells whether the pod is being deleted to make room for another.
func preempted(p *pod) bool {
	return p.DeletionTimestamp != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
	})
}

// victims tries the pod on n without all pods of lower priority and puts back
// as many as possible, first those with a disruption budget; without success,
// it says why. The cluster is as before when it returns.
func (s *Scheduler) victims(a *attempt, n *node, budgets []*policyv1.PodDisruptionBudget) (*candidate, *refusal) {
	p := a.pod
	var lower []*pod
	for _, o := range n.pods {
		if o.priority < p.priority {
			lower = append(lower, o)
		}
	}
	if len(lower) == 0 {
		return nil, refused(noVictims)
	}
	for _, o := range lower {
		s.cluster.unplace(o.UID)
	}
	var away []*pod
	defer func() {
		for _, o := range away {
			s.cluster.place(o, n.Name)
		}
	}()
	if r := s.refuses(a, n); r != nil {
		away = lower
		return nil, r
	}
	slices.SortStableFunc(lower, moreImportant)
	violating, others := split(lower, budgets)
	found := &candidate{node: n}
	for i, group := range [][]*pod{violating, others} {
		for _, o := range group {
			s.cluster.place(o, n.Name)
			if s.refuses(a, n) == nil {
				continue
			}
			s.cluster.unplace(o.UID)
			away = append(away, o)
			found.victims = append(found.victims, o)
			if i == 0 {
				found.violations++
			}
		}
	}
	if len(found.victims) == 0 {
		return nil, refused(noVictims)
	}
	slices.SortStableFunc(found.victims, moreImportant)
	return found, nil
}

// refuses checks the node for the pod of a against the cluster as it is now.
func (s *Scheduler) refuses(a *attempt, n *node) *refusal {
	return s.check(s.again(a), n)
}

// again is the attempt with all computed anew that other pods have a say in.
func (s *Scheduler) again(a *attempt) *attempt {
	s.attempts++
	next := s.cluster.attempt(a.pod, nil, s.attempts)
	next.claims = a.claims
	return next
}

// moreImportant orders pods by falling priority, then rising start time.
func moreImportant(a, b *pod) int {
	if c := cmp.Compare(b.priority, a.priority); c != 0 {
		return c
	}
	return started(a).Compare(started(b).Time)
}

func started(p *pod) *metav1.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime
	}
	return &p.CreationTimestamp
}

// split tells pods whose deletion a budget forbids from the others.
func split(pods []*pod, budgets []*policyv1.PodDisruptionBudget) (violating, others []*pod) {
	allowed := make(map[types.UID]int32, len(budgets))
	for _, b := range budgets {
		allowed[b.UID] = b.Status.DisruptionsAllowed
	}
	for _, p := range pods {
		violates := false
		for _, b := range budgets {
			if b.Namespace != p.Namespace || !budgetSelects(b, p.Labels) {
				continue
			}
			if _, known := b.Status.DisruptedPods[p.Name]; known {
				continue
			}
			allowed[b.UID]--
			violates = violates || allowed[b.UID] < 0
		}
		if violates {
			violating = append(violating, p)
		} else {
			others = append(others, p)
		}
	}
	return violating, others
}

func budgetSelects(b *policyv1.PodDisruptionBudget, podLabels map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	return err == nil && !selector.Empty() && selector.Matches(labels.Set(podLabels))
}

// less tells whether preempting on a does less harm than on b, by
// kube-scheduler's rules in their order.
func less(a, b *candidate) bool {
	if a.violations != b.violations {
		return a.violations < b.violations
	}
	if x, y := a.victims[0].priority, b.victims[0].priority; x != y {
		return x < y
	}
	if x, y := prioritySum(a), prioritySum(b); x != y {
		return x < y
	}
	if x, y := len(a.victims), len(b.victims); x != y {
		return x < y
	}
	return started(earliest(b)).Before(started(earliest(a)))
}

func prioritySum(c *candidate) (sum int64) {
	for _, v := range c.victims {
		sum += int64(v.priority) + 1<<31 // so that fewer negative ones do not look worse
	}
	return sum
}

// earliest is the longest-running of the victims with the highest priority.
func earliest(c *candidate) *pod {
	first := c.victims[0]
	for _, v := range c.victims {
		if v.priority == first.priority && started(v).Before(started(first)) {
			first = v
		}
	}
	return first
}
