package nodes

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Eviction deletes pods that do not tolerate a NoExecute taint of their node,
// after the time that they do tolerate it.
func Eviction(r *registry.Registry, index *children.Index, events record.EventRecorder, now func() time.Time) *loop.Controller {
	nodes, pods := registry.Of[*corev1.Node](r), registry.Of[*corev1.Pod](r)
	noticed := &sightings{first: map[types.UID]time.Time{}}
	return &loop.Controller{
		Name:    "taint-eviction",
		Workers: 8,
		Sources: []loop.Source{
			loop.Changes(r, func(old, n *corev1.Node, deleted bool) []loop.Key {
				if deleted || !noExecute(n) && (old == nil || !noExecute(old)) || old != nil && equality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
					return nil
				}
				var keys []loop.Key
				for _, p := range index.OnNode(n.Name) {
					keys = append(keys, loop.KeyOf(p))
				}
				return keys
			}),
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key {
				if deleted {
					noticed.forget(p.UID)
				}
				if deleted || p.Spec.NodeName == "" || old != nil && old.Spec.NodeName != "" && len(old.Spec.Tolerations) == len(p.Spec.Tolerations) {
					return nil
				}
				return []loop.Key{loop.KeyOf(p)}
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			if err != nil || p.DeletionTimestamp != nil || p.Spec.NodeName == "" {
				return 0, nil
			}
			n, err := nodes.Get("", p.Spec.NodeName)
			if err != nil {
				return 0, nil
			}
			patience, evict := tolerance(p, n)
			if !evict {
				if noticed.forget(p.UID) {
					events.Eventf(p, corev1.EventTypeNormal, "TaintManagerEviction", "Cancelling deletion of Pod %s/%s", p.Namespace, p.Name)
				}
				return 0, nil
			}
			if patience > 0 {
				if wait := noticed.since(p.UID, now()).Add(patience).Sub(now()); wait > 0 {
					return wait, nil
				}
			}
			events.Eventf(p, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", p.Namespace, p.Name)
			return 0, evictPod(ctx, pods, p, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now())
		},
	}
}

func noExecute(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })
}

// tolerance is how long the pod may stay: not at all with a taint that it does
// not tolerate, else the shortest tolerationSeconds. evict is false when it may
// stay for ever.
func tolerance(p *corev1.Pod, n *corev1.Node) (patience time.Duration, evict bool) {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		// The first toleration that fits counts, as upstream has it.
		j := slices.IndexFunc(p.Spec.Tolerations, func(toleration corev1.Toleration) bool { return tolerates(&toleration, t) })
		if j < 0 {
			return 0, true
		}
		seconds := p.Spec.Tolerations[j].TolerationSeconds
		if seconds == nil {
			continue
		}
		if d := time.Duration(max(0, *seconds)) * time.Second; !evict || d < patience {
			patience, evict = d, true
		}
	}
	return patience, evict
}

// sightings remember since when pods are known to have to leave. A taint does
// not tell when it was set, nor a pod when it met it.
type sightings struct {
	mu    sync.Mutex
	first map[types.UID]time.Time
}

// since is when the pod was first asked for.
func (s *sightings) since(uid types.UID, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.first[uid]; ok {
		return at
	}
	s.first[uid] = now
	return now
}

// forget tells whether the pod was remembered.
func (s *sightings) forget(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.first[uid]
	delete(s.first, uid)
	return ok
}

func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	return t.Operator == corev1.TolerationOpExists || t.Value == taint.Value
}

// evictPod marks a pod as disrupted, with the reason, and deletes it.
func evictPod(ctx context.Context, pods registry.Typed[*corev1.Pod], p *corev1.Pod, reason, message string, now time.Time) error {
	_, err := pods.MutateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
		p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message,
			LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(), ObservedGeneration: p.Generation,
		})
		return nil
	})
	if err == nil {
		err = pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
	}
	return ignoreNotFound(err)
}
