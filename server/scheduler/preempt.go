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

// preemptionNotHelpful is said of nodes where deleting pods cannot help.
const preemptionNotHelpful = "Preemption is not helpful for scheduling"

// preempt looks for the node where the least harm makes room for the pod of a.
// When there is none, the text explains it as kube-scheduler does.
func (s *Scheduler) preempt(a *attempt, d *diagnosis) (*candidate, string) {
	p := a.pod
	if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever {
		return nil, "not eligible due to preemptionPolicy=Never."
	}
	if s.victimsLeaving(p) {
		return nil, "not eligible due to a terminating pod on the nominated node."
	}
	budgets := s.door.Budgets()
	refusals := map[string]*refusal{}
	var best *candidate
	for _, n := range s.cluster.nodes {
		r := d.refusals[n.Name]
		if r == nil || r.unresolvable {
			refusals[n.Name] = refused(preemptionNotHelpful)
			continue
		}
		found := s.victims(p, n, budgets)
		if found == nil {
			refusals[n.Name] = refused("No preemption victims found for incoming pod")
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

// victimsLeaving tells whether pods of lower priority are already being deleted
// from the node that was nominated for p: then waiting is enough.
func (s *Scheduler) victimsLeaving(p *pod) bool {
	n := s.cluster.byName[p.Status.NominatedNodeName]
	return n != nil && slices.ContainsFunc(n.pods, func(o *pod) bool {
		return o.DeletionTimestamp != nil && o.priority < p.priority
	})
}

// victims tries the pod on n without all pods of lower priority and puts back
// as many as possible, first those with a disruption budget. The cluster is as
// before when it returns.
func (s *Scheduler) victims(p *pod, n *node, budgets []*policyv1.PodDisruptionBudget) *candidate {
	var lower []*pod
	for _, o := range n.pods {
		if o.priority < p.priority {
			lower = append(lower, o)
		}
	}
	if len(lower) == 0 {
		return nil
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
	if !s.fits(p, n) {
		away = lower
		return nil
	}
	slices.SortStableFunc(lower, moreImportant)
	violating, others := split(lower, budgets)
	found := &candidate{node: n}
	for i, group := range [][]*pod{violating, others} {
		for _, o := range group {
			s.cluster.place(o, n.Name)
			if s.fits(p, n) {
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
		return nil
	}
	slices.SortStableFunc(found.victims, moreImportant)
	return found
}

func (s *Scheduler) fits(p *pod, n *node) bool {
	s.attempts++
	a := s.cluster.attempt(p, nil, s.attempts)
	return s.check(a, n) == nil
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
