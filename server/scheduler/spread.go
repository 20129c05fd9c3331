package scheduler

import "math"

// spreadState is what PodTopologySpread knows of one incoming pod.
type spreadState struct {
	hard, soft []spreadCount
}

type spreadCount struct {
	constraint *constraint
	byValue    map[string]int // matching pods by topology value, over the nodes that count
	perNode    map[*node]int  // the same, of a topology in which each node is by itself; nil: it is not so
	domains    int            // topology values of those nodes
	weight     float64        // of the pods in a domain, for scores
	least      int64          // matching pods in the emptiest domain; of hard constraints
	self       int64          // 1 if the pod matches its own selector
}

func (c *cluster) spreadOf(p *pod, constraints []constraint, attempt int) *spreadState {
	s := &spreadState{}
	if len(constraints) == 0 {
		return s
	}
	for i := range constraints {
		k := &constraints[i]
		count := c.spreadCount(p, k, constraints, attempt)
		switch {
		case k.hard:
			s.hard = append(s.hard, count)
		case k.byDefault && count.domains == 0: // no node has a zone
		default:
			s.soft = append(s.soft, count)
		}
	}
	return s
}

func (c *cluster) spreadCount(p *pod, k *constraint, all []constraint, attempt int) spreadCount {
	counter := c.counter(&k.selection, false, attempt)
	count := spreadCount{constraint: k}
	if k.selection.matches(p.Pod, c.namespaceLabels) {
		count.self = 1
	}
	if c.everyNodeCounts(p, k, all) {
		d := c.domain(k.topologyKey)
		count.byValue, count.domains = counter.byValue(k.topologyKey), len(d.values)
		if d.nodes == len(c.nodes) && d.nodes == len(d.values) {
			count.perNode = counter.perNode
		}
		if k.hard {
			count.least = least(count.byValue, d.values)
		}
	} else {
		count.byValue = map[string]int{}
		for _, n := range c.nodes {
			if value, ok := n.Labels[k.topologyKey]; ok && counts(p, n, k, all) {
				count.byValue[value] += counter.perNode[n]
			}
		}
		count.domains, count.least = len(count.byValue), least(count.byValue, count.byValue)
	}
	if int64(count.domains) < k.minDomains || count.domains == 0 {
		count.least = 0
	}
	// A topology with many values would otherwise weigh less than one with few.
	count.weight = math.Log(float64(count.domains + 2))
	return count
}

// least is the smallest count of the values among.
func least(counts, among map[string]int) int64 {
	least := int64(math.MaxInt64)
	for value := range among {
		if least = min(least, int64(counts[value])); least == 0 {
			break
		}
	}
	return least
}

// everyNodeCounts tells whether counts is true of all nodes with k's label, as
// it mostly is: then nobody needs to look at them one by one.
func (c *cluster) everyNodeCounts(p *pod, k *constraint, all []constraint) bool {
	if k.honorTaints || k.honorAffinity && p.choosy {
		return false
	}
	for i := range all {
		if !k.byDefault && all[i].hard == k.hard && c.domain(all[i].topologyKey).nodes < len(c.nodes) {
			return false
		}
	}
	return true
}

// counts tells whether a node is one of those over which k spreads: it must
// have the labels of all constraints of the same hardness and, by the
// constraint's policies, match the pod's node affinity and taints.
func counts(p *pod, n *node, k *constraint, all []constraint) bool {
	for i := range all {
		if _, ok := n.Labels[all[i].topologyKey]; !ok && all[i].hard == k.hard && !k.byDefault {
			return false
		}
	}
	if k.honorAffinity {
		if ok, err := p.nodeMatch.Match(n.Node); !ok || err != nil {
			return false
		}
	}
	return !k.honorTaints || !untolerated(p, n, repelling)
}

func (s *spreadState) refuse(n *node) *refusal {
	for i := range s.hard {
		count := &s.hard[i]
		pods, ok := count.at(n)
		if !ok {
			return unresolvable("node(s) didn't match pod topology spread constraints (missing required label)")
		}
		if int64(pods)+count.self-count.least > count.constraint.maxSkew {
			return refused("node(s) didn't match pod topology spread constraints")
		}
	}
	return nil
}

// score is the weighted number of matching pods where n lies; less is better.
// ok is false for a node that lacks a label and so gets no points, unless the
// constraints are the default ones: without zones, pods still spread by host.
func (s *spreadState) score(n *node) (sum float64, ok bool) {
	for i := range s.soft {
		count := &s.soft[i]
		pods, ok := count.at(n)
		if !ok {
			if count.constraint.byDefault {
				continue
			}
			return 0, false
		}
		sum += float64(pods)*count.weight + float64(count.constraint.maxSkew-1)
	}
	return sum, true
}

// at is the count where n lies; false: n lacks the label.
func (s *spreadCount) at(n *node) (pods int, ok bool) {
	if s.perNode != nil {
		return s.perNode[n], true
	}
	value, ok := n.Labels[s.constraint.topologyKey]
	return s.byValue[value], ok
}
