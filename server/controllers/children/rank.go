package children

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// SortForDeletion orders pods so that the first can go first, by upstream's
// rules: unscheduled, pending, not ready, cheap, crowded, lately ready,
// restarting, young. related are all pods that compete for the same nodes.
func SortForDeletion(pods, related []*corev1.Pod, now time.Time) {
	onNode := map[string]int{}
	for _, p := range related {
		if Active(p) {
			onNode[p.Spec.NodeName]++
		}
	}
	ranks := make(map[types.UID]rank, len(pods))
	for _, p := range pods {
		ranks[p.UID] = rankOf(p, onNode[p.Spec.NodeName])
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return ranks[a.UID].compare(ranks[b.UID], now) })
}

type rank struct {
	uid                    types.UID
	assigned, phase, ready int
	cost                   int // from an annotation
	crowd                  int // more pods on the node go first
	readySince, created    time.Time
	restarts, sidecars     int32 // most restarts of a container, and of a sidecar
}

func rankOf(p *corev1.Pod, onNode int) rank {
	r := rank{uid: p.UID, crowd: -onNode, created: p.CreationTimestamp.Time}
	switch p.Status.Phase {
	case corev1.PodUnknown:
		r.phase = 1
	case corev1.PodRunning:
		r.phase = 2
	}
	if p.Spec.NodeName != "" {
		r.assigned = 1
	}
	if c := readyCondition(p); c != nil {
		r.ready, r.readySince = 1, c.LastTransitionTime.Time
	}
	if cost, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32); err == nil {
		r.cost = int(cost)
	}
	for _, s := range p.Status.ContainerStatuses {
		r.restarts = max(r.restarts, s.RestartCount)
	}
	for _, s := range p.Status.InitContainerStatuses {
		for _, c := range p.Spec.InitContainers {
			if c.Name == s.Name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				r.sidecars = max(r.sidecars, s.RestartCount)
			}
		}
	}
	return r
}

func (r rank) compare(o rank, now time.Time) int {
	if c := cmp.Or(
		cmp.Compare(r.assigned, o.assigned), cmp.Compare(r.phase, o.phase), cmp.Compare(r.ready, o.ready),
		cmp.Compare(r.cost, o.cost), cmp.Compare(r.crowd, o.crowd),
	); c != 0 {
		return c
	}
	if r.ready == 1 && !r.readySince.Equal(o.readySince) {
		return r.younger(o, r.readySince, o.readySince, now)
	}
	if c := cmp.Or(cmp.Compare(o.restarts, r.restarts), cmp.Compare(o.sidecars, r.sidecars)); c != 0 {
		return c
	}
	if r.created.Equal(o.created) {
		return 0
	}
	return r.younger(o, r.created, o.created, now)
}

// younger compares ages by their logarithm. Of pods of about one age, chance
// decides: the oldest ones must not always be the ones that stay (KEP-2185).
func (r rank) younger(o rank, mine, other, now time.Time) int {
	switch {
	case mine.IsZero():
		return -1
	case other.IsZero():
		return 1
	}
	return cmp.Or(cmp.Compare(logarithm(now.Sub(mine)), logarithm(now.Sub(other))), cmp.Compare(r.uid, o.uid))
}

func logarithm(d time.Duration) int {
	if d <= 0 {
		return -1
	}
	return int(math.Log2(float64(d)))
}
