package daemonset

import (
	"cmp"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/children"
)

// Snapshot is what one look at a set sees.
type Snapshot struct {
	Set     *appsv1.DaemonSet
	Nodes   []*corev1.Node
	Pods    []*corev1.Pod                   // those it controls
	Hash    string                          // of the present template
	Backoff func(node string) time.Duration // how long a failed pod there must stay yet
}

// Deletion is a pod that goes, and the node it was for.
type Deletion struct {
	Pod  *corev1.Pod
	Node string
}

// Plan is the next step towards one present pod per node.
type Plan struct {
	Create []string // nodes that get a pod
	Delete []Deletion
	Again  time.Duration
}

// scene is a snapshot sorted by node.
type scene struct {
	Snapshot
	now  time.Time
	fit  fit
	pods map[string][]*corev1.Pod
	node map[string]*corev1.Node
}

func newScene(now time.Time, s Snapshot) *scene {
	sc := &scene{Snapshot: s, now: now, fit: fitOf(s.Set), pods: map[string][]*corev1.Pod{}, node: map[string]*corev1.Node{}}
	for _, n := range s.Nodes {
		sc.node[n.Name] = n
	}
	for _, p := range s.Pods {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if ended && p.DeletionTimestamp != nil {
			continue // only a finalizer keeps it
		}
		if node := nodeOf(p); node != "" {
			sc.pods[node] = append(sc.pods[node], p)
		}
	}
	for _, pods := range sc.pods {
		slices.SortFunc(pods, func(a, b *corev1.Pod) int {
			if bound := (a.Spec.NodeName != ""); bound != (b.Spec.NodeName != "") {
				return map[bool]int{true: -1, false: 1}[bound]
			}
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
	}
	return sc
}

// Reconcile plans the next step. Pods that are missing or too many come first;
// only when all is in place does a rollout go on.
func Reconcile(now time.Time, s Snapshot) Plan {
	sc := newScene(now, s)
	var plan Plan
	for _, n := range s.Nodes {
		plan.place(sc, n)
	}
	for _, node := range slices.Sorted(maps.Keys(sc.pods)) {
		if sc.node[node] != nil {
			continue
		}
		for _, p := range sc.pods[node] {
			if p.Spec.NodeName == "" { // meant for a node that has gone
				plan.remove(p, node)
			}
		}
	}
	if len(plan.Create) == 0 && len(plan.Delete) == 0 && s.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		plan.roll(sc)
	}
	plan.Create = plan.Create[:min(len(plan.Create), maxBurst)]
	plan.Delete = plan.Delete[:min(len(plan.Delete), maxBurst)]
	return plan
}

func (plan *Plan) remove(p *corev1.Pod, node string) {
	plan.Delete = append(plan.Delete, Deletion{p, node})
}

// place makes the pods of one node as many as they should be.
func (plan *Plan) place(sc *scene, n *corev1.Node) {
	should, may := sc.fit.node(n)
	pods := sc.pods[n.Name]
	switch {
	case should && len(pods) == 0:
		plan.Create = append(plan.Create, n.Name)
	case may:
		running := plan.clearEnded(sc, n.Name, pods)
		if !surges(sc.Set) {
			for _, p := range running[min(1, len(running)):] {
				plan.remove(p, n.Name)
			}
			return
		}
		if len(running) == 0 && should {
			plan.Create = append(plan.Create, n.Name)
		}
		plan.handOver(sc, n.Name, running)
	default:
		for _, p := range pods {
			if p.DeletionTimestamp == nil {
				plan.remove(p, n.Name)
			}
		}
	}
}

// clearEnded removes pods that have ended and gives those that have not.
func (plan *Plan) clearEnded(sc *scene, node string, pods []*corev1.Pod) (running []*corev1.Pod) {
	for _, p := range pods {
		switch {
		case p.DeletionTimestamp != nil:
		case p.Status.Phase == corev1.PodFailed:
			if wait := sc.Backoff(node); wait > 0 {
				plan.Again = children.Soonest(plan.Again, wait)
				continue
			}
			plan.remove(p, node)
		case p.Status.Phase == corev1.PodSucceeded:
			plan.remove(p, node)
		default:
			running = append(running, p)
		}
	}
	return running
}

// handOver lets at most an old and a new pod be on a node while it surges, and
// removes the old one once the new one can take its place.
func (plan *Plan) handOver(sc *scene, node string, running []*corev1.Pod) {
	if len(running) <= 1 {
		return
	}
	var fresh, old *corev1.Pod
	for _, p := range running {
		switch {
		case sc.updated(p) && fresh == nil:
			fresh = p
		case !sc.updated(p) && old == nil:
			old = p
		default:
			plan.remove(p, node)
		}
	}
	if fresh != nil && old != nil && (!children.Ready(old) || plan.available(sc, fresh)) {
		plan.remove(old, node)
	}
}

func (sc *scene) updated(p *corev1.Pod) bool {
	if sc.Hash != "" && p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == sc.Hash {
		return true
	}
	generation, ok := sc.Set.Annotations[appsv1.DeprecatedTemplateGeneration]
	return ok && p.Labels["pod-template-generation"] == generation
}

// available tells whether a pod has been ready for long enough, and comes back
// when it will have been.
func (plan *Plan) available(sc *scene, p *corev1.Pod) bool {
	ok, wait := children.Available(p, sc.Set.Spec.MinReadySeconds, sc.now)
	plan.Again = children.Soonest(plan.Again, wait)
	return ok
}

// surges tells whether an old and a new pod may be on a node together.
func surges(ds *appsv1.DaemonSet) bool {
	surge, _ := bounds(ds, 1)
	return surge > 0
}

// bounds resolves maxSurge and maxUnavailable, both rounded up.
func bounds(ds *appsv1.DaemonSet, desired int) (surge, unavailable int) {
	r := ds.Spec.UpdateStrategy.RollingUpdate
	if ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || r == nil {
		return 0, 0
	}
	if r.MaxSurge != nil {
		surge, _ = intstr.GetScaledValueFromIntOrPercent(r.MaxSurge, desired, true)
	}
	if r.MaxUnavailable != nil {
		unavailable, _ = intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, desired, true)
	}
	return surge, unavailable
}
