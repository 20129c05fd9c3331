// Package scheduler gives each pod the node that suits it best: a queue, filters
// that explain their refusals, scores, preemption and pipelined binding.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// Name is the scheduler that pods ask for by default.
const Name = "default-scheduler"

// Door is how the scheduler sees and changes the cluster.
type Door interface {
	// Watch reports all nodes and pods, then their changes, until ctx ends.
	// claims is called when Claims may answer differently, namespaces when
	// NamespaceLabels may.
	Watch(ctx context.Context, nodes func(n *corev1.Node, deleted bool), pods func(p *corev1.Pod, deleted bool), claims, namespaces func()) error
	NamespaceLabels(namespace string) labels.Set
	Budgets() []*policyv1.PodDisruptionBudget
	// SpreadSelector selects the pods among which p is spread by default: those
	// of its services and of its controller; nil: none.
	SpreadSelector(p *corev1.Pod) labels.Selector
	Claims(p *corev1.Pod) ClaimState

	Bind(ctx context.Context, p *corev1.Pod, node string) error
	// Unschedulable records the reason in the pod's condition and an event, and
	// the node that is being cleared for it ("": none).
	Unschedulable(ctx context.Context, p *corev1.Pod, message, nominated string) error
	Preempt(ctx context.Context, victim, by *corev1.Pod, node string) error
}

// Config of a scheduler.
type Config struct {
	Door   Door
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// Binds that may be under way at once.
const binders = 64

// Scheduler places pods. One goroutine owns all its state; watches and binds
// only hand it messages.
type Scheduler struct {
	door    Door
	log     *slog.Logger
	now     func() time.Time
	filters []filter

	cluster  *cluster
	queue    *queue
	attempts int
	nominees map[types.UID]*node // where pods wait for their victims to leave

	inbox inbox
	binds chan bind
}

type bind struct {
	w    *waiting
	pod  *pod
	node string
}

// New makes a scheduler that has seen nothing yet.
func New(cfg Config) *Scheduler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Scheduler{
		door: cfg.Door, log: cfg.Logger.With("component", "scheduler"), now: cfg.Now, filters: filters(),
		cluster:  newCluster(cfg.Door.NamespaceLabels),
		queue:    newQueue(),
		nominees: map[types.UID]*node{},
		inbox:    inbox{signal: make(chan struct{}, 1)},
		binds:    make(chan bind, binders),
	}
}

// inbox collects messages for the scheduler's goroutine; senders never wait.
type inbox struct {
	mu       sync.Mutex
	messages []func()
	signal   chan struct{}
}

func (b *inbox) send(message func()) {
	b.mu.Lock()
	b.messages = append(b.messages, message)
	b.mu.Unlock()
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

func (b *inbox) take() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	messages := b.messages
	b.messages = nil
	return messages
}

// Run schedules until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return s.door.Watch(ctx,
			func(n *corev1.Node, deleted bool) { s.inbox.send(func() { s.nodeChanged(n, deleted) }) },
			func(p *corev1.Pod, deleted bool) { s.inbox.send(func() { s.podChanged(p, deleted) }) },
			func() { s.inbox.send(func() { s.queue.happened(claimChanged, s.now()) }) },
			func() { s.inbox.send(s.namespaceChanged) })
	})
	for range binders {
		group.Go(func() error {
			for b := range s.binds {
				s.bind(ctx, b)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(s.binds)
		return s.loop(ctx)
	})
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// loop is the goroutine that owns the state.
func (s *Scheduler) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		for _, message := range s.inbox.take() {
			message()
		}
		if w := s.queue.pop(s.now()); w != nil {
			s.schedule(ctx, w)
			continue
		}
		timer.Stop()
		if at, ok := s.queue.wake(); ok {
			timer.Reset(at.Sub(s.now()))
		}
		select {
		case <-ctx.Done():
		case <-s.inbox.signal:
		case <-timer.C:
		}
	}
	return ctx.Err()
}

func (s *Scheduler) nodeChanged(obj *corev1.Node, deleted bool) {
	if deleted {
		s.cluster.removeNode(obj.Name)
		s.queue.happened(nodeGone, s.now())
		return
	}
	what := nodeAdded | nodeCapacity | nodeLabel | nodeTaint
	if old := s.cluster.byName[obj.Name]; old != nil {
		what = nodeChange(old.Node, obj)
	}
	s.cluster.setNode(obj)
	if what != 0 {
		s.queue.happened(what, s.now())
	}
}

func (s *Scheduler) namespaceChanged() {
	s.cluster.namespaceChanged()
	s.queue.happened(namespaceLabel, s.now())
}

// nodeChange tells which kinds of refusal a node's new state may turn around.
func nodeChange(old, obj *corev1.Node) (what cause) {
	if !sameLabels(old.Labels, obj.Labels) {
		what |= nodeLabel
	}
	if old.Spec.Unschedulable != obj.Spec.Unschedulable || fmt.Sprint(old.Spec.Taints) != fmt.Sprint(obj.Spec.Taints) {
		what |= nodeTaint
	}
	if !sameQuantities(old.Status.Allocatable, obj.Status.Allocatable) {
		what |= nodeCapacity
	}
	return what
}

func sameQuantities(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, x := range a {
		if y, ok := b[name]; !ok || x.Cmp(y) != 0 {
			return false
		}
	}
	return true
}

func (s *Scheduler) podChanged(obj *corev1.Pod, deleted bool) {
	now := s.now()
	finished := obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
	switch {
	case deleted || finished:
		_, wasPlaced := s.cluster.placed[obj.UID]
		s.cluster.unplace(obj.UID)
		s.unnominate(obj.UID)
		s.queue.remove(obj.UID)
		if wasPlaced {
			s.queue.happened(podGone, now)
		}
	case obj.Spec.NodeName != "":
		s.queue.remove(obj.UID)
		s.unnominate(obj.UID)
		what, p := podPlaced, newPod(obj)
		if old, ok := s.cluster.placed[obj.UID]; ok && asksLess(&p.requests, &old.pod.requests) {
			what |= podGone
		}
		s.cluster.place(p, obj.Spec.NodeName)
		s.queue.happened(what, now)
	case obj.Spec.SchedulerName != Name || obj.DeletionTimestamp != nil || len(obj.Spec.SchedulingGates) > 0:
		s.queue.remove(obj.UID)
	default:
		s.waitingChanged(newPod(obj), now)
	}
}

// asksLess tells whether a resize freed some of what the pod had requested.
func asksLess(now, before *amounts) bool {
	return now.cpu < before.cpu || now.memory < before.memory || now.ephemeral < before.ephemeral
}

// waitingChanged queues a pod, unless it is waiting already and nothing that
// scheduling looks at has changed (our own status update comes back here too).
func (s *Scheduler) waitingChanged(p *pod, now time.Time) {
	if _, assumed := s.cluster.placed[p.UID]; assumed {
		return // being bound
	}
	w := s.queue.pods[p.UID]
	if w != nil && w.pod.Generation == p.Generation && sameLabels(w.pod.Labels, p.Labels) {
		s.queue.update(p)
		return
	}
	if n := s.cluster.byName[p.Status.NominatedNodeName]; n != nil && w == nil {
		s.nominate(p, n) // by an earlier scheduler, or the leader before
	}
	s.queue.add(p, now)
}

// schedule tries to place one pod.
func (s *Scheduler) schedule(ctx context.Context, w *waiting) {
	p := w.pod
	s.attempts++
	claims := s.door.Claims(p.Pod)
	if claims.Problem != "" {
		s.refuse(ctx, w, &attempt{pod: p}, &diagnosis{nodes: len(s.cluster.nodes), before: claims.Problem, causes: claimChanged})
		return
	}
	a := s.cluster.attempt(p, s.defaultSpread(p), s.attempts)
	a.claims = claims
	fitting, d := s.find(a)
	if len(fitting) > 0 {
		n := s.cluster.best(a, fitting)
		s.unnominate(p.UID)
		s.cluster.place(p, n.Name)
		select {
		case s.binds <- bind{w, p, n.Name}:
		case <-ctx.Done():
		}
		return
	}
	s.refuse(ctx, w, a, d)
}

func (s *Scheduler) refuse(ctx context.Context, w *waiting, a *attempt, d *diagnosis) {
	if len(s.cluster.nodes) == 0 {
		s.setAside(ctx, w, d.message(), "", anything)
		return
	}
	if why := s.ineligible(w.pod, d); why != "" {
		s.setAside(ctx, w, d.message()+" preemption: "+why, w.pod.Status.NominatedNodeName, d.causes|nodeAdded)
		return
	}
	found, why := s.preempt(a, d)
	if found == nil {
		s.unnominate(w.pod.UID)
		s.setAside(ctx, w, d.message()+" preemption: "+why, "", d.causes|nodeAdded)
		return
	}
	s.nominate(w.pod, found.node)
	for _, v := range found.victims {
		if v.DeletionTimestamp != nil {
			continue
		}
		if err := s.door.Preempt(ctx, v.Pod, w.pod.Pod, found.node.Name); err != nil {
			s.log.Warn("preemption failed", "pod", name(v.Pod), "for", name(w.pod.Pod), "err", err)
		}
	}
	s.setAside(ctx, w, d.message(), found.node.Name, d.causes|nodeAdded|podGone)
}

func name(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// setAside records why a pod is refused and lets it wait.
func (s *Scheduler) setAside(ctx context.Context, w *waiting, message, nominated string, causes cause) {
	s.queue.refuse(w, causes, s.now())
	if err := s.door.Unschedulable(ctx, w.pod.Pod, message, nominated); err != nil && ctx.Err() == nil {
		s.log.Warn("cannot record why a pod is not scheduled", "pod", name(w.pod.Pod), "err", err)
	}
}

// find gives nodes that fit. In a large cluster it stops when it has seen
// enough to choose from, and begins elsewhere the next time.
func (s *Scheduler) find(a *attempt) ([]*node, *diagnosis) {
	all := s.cluster.nodes
	d := &diagnosis{nodes: len(all), refusals: map[string]*refusal{}}
	enough := enoughNodes(len(all))
	var fitting []*node
	if n := s.cluster.byName[a.pod.Status.NominatedNodeName]; n != nil && s.check(a, n) == nil {
		return []*node{n}, d
	}
	for i := range all {
		n := all[(s.cluster.start+i)%len(all)]
		if a.pod.pinned != nil && !a.pod.pinned.Has(n.Name) {
			d.refusals[n.Name] = unresolvable("node(s) didn't satisfy plugin(s) [NodeAffinity]")
			continue
		}
		if r, f := s.refusal(a, n); r != nil {
			d.refusals[n.Name] = r
			d.causes |= f.causes
			continue
		}
		if fitting = append(fitting, n); len(fitting) == enough {
			s.cluster.start = (s.cluster.start + i + 1) % len(all)
			break
		}
	}
	return fitting, d
}

// enoughNodes is how many fitting nodes are compared (kube-scheduler's
// adaptive percentageOfNodesToScore).
func enoughNodes(all int) int {
	const least = 100
	if all <= least {
		return max(all, 1)
	}
	percent := max(5, 50-all/125)
	return max(least, all*percent/100)
}

func (s *Scheduler) check(a *attempt, n *node) *refusal {
	r, _ := s.refusal(a, n)
	return r
}

// refusal checks a node, and before that with the pods nominated to it counted
// in: they were promised the room that is being cleared there. The pod must fit
// either way, since they may not come after all.
func (s *Scheduler) refusal(a *attempt, n *node) (*refusal, *filter) {
	if len(n.nominated) > 0 {
		if r, f := s.refusalWithNominated(a, n); r != nil {
			return r, f
		}
	}
	return s.filter(a, n)
}

func (s *Scheduler) refusalWithNominated(a *attempt, n *node) (*refusal, *filter) {
	added := false
	for _, other := range n.nominated {
		if _, placed := s.cluster.placed[other.UID]; !placed && other.UID != a.pod.UID && other.priority >= a.pod.priority {
			s.cluster.place(other, n.Name)
			defer s.cluster.unplace(other.UID)
			added = true
		}
	}
	if !added {
		return nil, nil
	}
	return s.filter(s.again(a), n)
}

func (s *Scheduler) filter(a *attempt, n *node) (*refusal, *filter) {
	for i := range s.filters {
		if r := s.filters[i].check(a, n); r != nil {
			return r, &s.filters[i]
		}
	}
	return nil, nil
}

func (s *Scheduler) nominate(p *pod, n *node) {
	s.unnominate(p.UID)
	n.nominated = append(n.nominated, p)
	s.nominees[p.UID] = n
}

func (s *Scheduler) unnominate(uid types.UID) {
	if n := s.nominees[uid]; n != nil {
		n.nominated = slices.DeleteFunc(n.nominated, func(p *pod) bool { return p.UID == uid })
		delete(s.nominees, uid)
	}
}

// bind runs on a binder's goroutine; its outcome comes back as a message.
func (s *Scheduler) bind(ctx context.Context, b bind) {
	err := s.door.Bind(ctx, b.pod.Pod, b.node)
	if err == nil || ctx.Err() != nil {
		return // the pod's own event confirms the placement
	}
	s.log.Debug("bind failed", "pod", name(b.pod.Pod), "node", b.node, "err", err)
	s.inbox.send(func() {
		if placed, ok := s.cluster.placed[b.pod.UID]; ok && placed.pod == b.pod {
			s.cluster.unplace(b.pod.UID)
			s.queue.happened(podGone, s.now())
		}
		s.queue.retry(b.w, s.now())
	})
}

// Default constraints of pods that name none (kube-scheduler's system
// defaulting): spread softly by host and by zone.
func (s *Scheduler) defaultSpread(p *pod) []constraint {
	if len(p.spread) > 0 || len(s.cluster.nodes) < 2 {
		return nil
	}
	selector := s.door.SpreadSelector(p.Pod)
	if selector == nil {
		return nil
	}
	out := make([]constraint, 0, 2)
	for _, c := range []struct {
		key  string
		skew int64
	}{{corev1.LabelHostname, 3}, {corev1.LabelTopologyZone, 5}} {
		k := constraint{maxSkew: c.skew, minDomains: 1, honorAffinity: true, byDefault: true}
		k.topologyKey, k.selector = c.key, selector
		k.namespaces = sets.New(p.Namespace)
		k.setKey()
		out = append(out, k)
	}
	return out
}
