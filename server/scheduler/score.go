package scheduler

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Weights of the scores, as in kube-scheduler's default profile.
const (
	weightTaints   = 3
	weightAffinity = 2
	weightPods     = 2
	weightSpread   = 2
	maxScore       = 100
)

// best picks the node to run on among those that fit.
func (c *cluster) best(a *attempt, fitting []*node) *node {
	if len(fitting) == 1 {
		return fitting[0]
	}
	totals := make([]float64, len(fitting))
	spots := c.imageSpots(a.pod)
	for i, n := range fitting {
		totals[i] = leastAllocated(a.pod, n) + balancedAllocation(a.pod, n)
		if len(spots) > 0 {
			totals[i] += imageLocality(a.pod, n, spots)
		}
	}
	raw := make([]float64, len(fitting))
	add := func(weight float64, score func(*node) float64, reverse bool) {
		for i, n := range fitting {
			raw[i] = score(n)
		}
		normalize(raw, reverse)
		for i := range totals {
			totals[i] += weight * raw[i]
		}
	}
	add(weightTaints, func(n *node) float64 { return untoleratedPreferences(a.pod, n) }, true)
	if a.pod.nodeTerms != nil {
		add(weightAffinity, func(n *node) float64 { return float64(a.pod.nodeTerms.Score(n.Node)) }, false)
	}
	if len(a.affinity.scores) > 0 {
		for i, n := range fitting {
			raw[i] = float64(a.affinity.score(n))
		}
		stretch(raw)
		for i := range totals {
			totals[i] += weightPods * raw[i]
		}
	}
	if len(a.spread.soft) > 0 {
		c.addSpread(a, fitting, totals)
	}
	best := 0
	for i := range totals {
		if totals[i] > totals[best] {
			best = i
		}
	}
	return fitting[best]
}

func (c *cluster) addSpread(a *attempt, fitting []*node, totals []float64) {
	raw := make([]float64, len(fitting))
	least, most := math.Inf(1), math.Inf(-1)
	for i, n := range fitting {
		score, ok := a.spread.score(n)
		if !ok {
			raw[i] = math.NaN()
			continue
		}
		raw[i] = score
		least, most = min(least, score), max(most, score)
	}
	for i := range raw {
		switch {
		case math.IsNaN(raw[i]):
		case most == 0:
			totals[i] += weightSpread * maxScore
		default:
			totals[i] += weightSpread * maxScore * (most + least - raw[i]) / most
		}
	}
}

// normalize scales scores to 0…maxScore by the greatest, reversed if asked.
func normalize(scores []float64, reverse bool) {
	most := 0.0
	for _, s := range scores {
		most = max(most, s)
	}
	for i := range scores {
		if most > 0 {
			scores[i] *= maxScore / most
		}
		if reverse {
			scores[i] = maxScore - scores[i]
		}
	}
}

// stretch scales scores so that the least is 0 and the greatest maxScore.
func stretch(scores []float64) {
	least, most := math.Inf(1), math.Inf(-1)
	for _, s := range scores {
		least, most = min(least, s), max(most, s)
	}
	for i := range scores {
		if most > least {
			scores[i] = maxScore * (scores[i] - least) / (most - least)
		} else {
			scores[i] = 0
		}
	}
}

// leastAllocated favours nodes with free CPU and memory.
func leastAllocated(p *pod, n *node) float64 {
	free := func(request, used, allocatable int64) float64 {
		if allocatable == 0 || used+request > allocatable {
			return 0
		}
		return maxScore * float64(allocatable-used-request) / float64(allocatable)
	}
	return (free(p.assumed.cpu, n.assumed.cpu, n.allocatable.cpu) +
		free(p.assumed.memory, n.assumed.memory, n.allocatable.memory)) / 2
}

// balancedAllocation favours nodes on which CPU and memory are used more evenly
// with the pod than without it: 50 to 100, 75 if it makes no difference. A pod
// that requests neither has no say.
func balancedAllocation(p *pod, n *node) float64 {
	if p.requests.cpu == 0 && p.requests.memory == 0 {
		return 0
	}
	without := balance(n, n.requested.cpu, n.requested.memory)
	with := balance(n, n.requested.cpu+p.requests.cpu, n.requested.memory+p.requests.memory)
	return maxScore/2 + (maxScore/2+with-without)/2
}

// balance is 100 less the standard deviation, in percent, of the shares in use.
func balance(n *node, cpu, memory int64) float64 {
	if n.allocatable.cpu == 0 || n.allocatable.memory == 0 {
		return maxScore
	}
	share := func(used, allocatable int64) float64 { return min(1, float64(used)/float64(allocatable)) }
	return maxScore * (1 - math.Abs(share(cpu, n.allocatable.cpu)-share(memory, n.allocatable.memory))/2)
}

// Bounds between which the size of images present counts.
const (
	imageFloor   = 23 << 20
	imageCeiling = 1000 << 20
)

// imageSpot is an image of a pod and the share of the nodes that have it.
type imageSpot struct {
	name  string
	share float64
}

// imageSpots gives those of the pod's images that are anywhere.
func (c *cluster) imageSpots(p *pod) (spots []imageSpot) {
	for _, name := range p.images {
		if count := c.imageNodes[name]; count > 0 {
			spots = append(spots, imageSpot{name, float64(count) / float64(len(c.nodes))})
		}
	}
	return spots
}

// imageLocality favours nodes that have the pod's images, the more so the
// more nodes have them (so that one node is not flooded).
func imageLocality(p *pod, n *node, spots []imageSpot) float64 {
	sum := 0.0
	for _, spot := range spots {
		sum += float64(n.images[spot.name]) * spot.share
	}
	ceiling := float64(imageCeiling * max(1, len(p.images)))
	return maxScore * (min(max(sum, imageFloor), ceiling) - imageFloor) / (ceiling - imageFloor)
}

func normalImage(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}

func untoleratedPreferences(p *pod, n *node) float64 {
	count := 0.0
	for i := range n.taints {
		if t := &n.taints[i]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(p, t) {
			count++
		}
	}
	return count
}
