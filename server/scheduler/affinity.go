package scheduler

import "strconv"

// existingTerm gathers equal affinity terms of placed pods. An incoming pod is
// matched once against the term and not against every pod that has it.
type existingTerm struct {
	selection selection
	kind      termKind
	perNode   map[*node]int
}

type termKind int

const (
	requiredAffinity termKind = iota
	requiredAntiAffinity
	preferredAffinity
	preferredAntiAffinity
)

// Weight of an existing pod's required affinity term in scores
// (kube-scheduler's HardPodAffinityWeight).
const hardAffinityWeight = 1

func (c *cluster) countTerms(p *pod, n *node, sign int) {
	c.countKind(p.affinity, requiredAffinity, n, sign)
	c.countKind(p.antiAffinity, requiredAntiAffinity, n, sign)
	c.countKind(p.preferredAffinity, preferredAffinity, n, sign)
	c.countKind(p.preferredAntiAffinity, preferredAntiAffinity, n, sign)
}

func (c *cluster) countKind(terms []selection, kind termKind, n *node, sign int) {
	for i := range terms {
		s := &terms[i]
		key := strconv.Itoa(int(kind)) + "/" + strconv.FormatInt(s.weight, 10) + "/" + s.topologyKey + "/" + s.key
		t := c.existing[key]
		if t == nil {
			t = &existingTerm{selection: *s, kind: kind, perNode: map[*node]int{}}
			c.existing[key] = t
		}
		if t.perNode[n] += sign; t.perNode[n] == 0 {
			delete(t.perNode, n)
			if len(t.perNode) == 0 {
				delete(c.existing, key)
			}
		}
	}
}

// pair is a value of a topology label.
type pair struct{ key, value string }

// affinityState is what InterPodAffinity knows of one incoming pod.
type affinityState struct {
	forbidden map[pair]bool // by placed pods' required anti-affinity
	affinity  []term
	anti      []term
	first     bool // no pod anywhere matches, but the pod matches its own terms
	scores    map[pair]int64
}

func (c *cluster) affinityOf(p *pod, attempt int) *affinityState {
	s := &affinityState{}
	for _, t := range c.existing {
		if !t.selection.matches(p.Pod, c.namespaceLabels) {
			continue
		}
		for n, count := range t.perNode {
			value, ok := n.Labels[t.selection.topologyKey]
			if !ok {
				continue
			}
			s.existing(t, pair{t.selection.topologyKey, value}, int64(count))
		}
	}
	s.affinity = c.terms(p.affinity, attempt)
	s.anti = c.terms(p.antiAffinity, attempt)
	s.first = len(p.affinity) > 0
	for i := range p.affinity {
		s.first = s.first && s.affinity[i].nobody() && p.affinity[i].matches(p.Pod, c.namespaceLabels)
	}
	s.addPreferences(c.terms(p.preferredAffinity, attempt), 1)
	s.addPreferences(c.terms(p.preferredAntiAffinity, attempt), -1)
	return s
}

// nobody tells whether no pod matches on any node that has the topology's label.
func (t *term) nobody() bool {
	for _, count := range t.counter.byValue(t.topologyKey) {
		if count > 0 {
			return false
		}
	}
	return true
}

func (s *affinityState) existing(t *existingTerm, at pair, count int64) {
	switch t.kind {
	case requiredAntiAffinity:
		if s.forbidden == nil {
			s.forbidden = map[pair]bool{}
		}
		s.forbidden[at] = true
	case requiredAffinity:
		s.addScore(at, hardAffinityWeight*count)
	case preferredAffinity:
		s.addScore(at, t.selection.weight*count)
	case preferredAntiAffinity:
		s.addScore(at, -t.selection.weight*count)
	}
}

func (s *affinityState) addScore(at pair, score int64) {
	if s.scores == nil {
		s.scores = map[pair]int64{}
	}
	s.scores[at] += score
}

func (s *affinityState) addPreferences(terms []term, sign int64) {
	for _, t := range terms {
		for value, count := range t.counter.byValue(t.topologyKey) {
			s.addScore(pair{t.topologyKey, value}, sign*t.weight*int64(count))
		}
	}
}

func (c *cluster) terms(selections []selection, attempt int) []term {
	out := make([]term, len(selections))
	for i := range selections {
		s := &selections[i]
		out[i] = term{counter: c.counter(s, true, attempt), topologyKey: s.topologyKey, weight: s.weight}
	}
	return out
}

func (s *affinityState) refuse(n *node) *refusal {
	for _, t := range s.affinity {
		value, ok := n.Labels[t.topologyKey]
		if !ok || (t.counter.byValue(t.topologyKey)[value] <= 0 && !s.first) {
			return unresolvable("node(s) didn't match pod affinity rules")
		}
	}
	for _, t := range s.anti {
		if value, ok := n.Labels[t.topologyKey]; ok && t.counter.byValue(t.topologyKey)[value] > 0 {
			return refused("node(s) didn't match pod anti-affinity rules")
		}
	}
	if len(s.forbidden) == 0 { // cheaper than to begin the loop, and asked for each node
		return nil
	}
	for at := range s.forbidden {
		if value, ok := n.Labels[at.key]; ok && value == at.value {
			return refused("node(s) didn't satisfy existing pods anti-affinity rules")
		}
	}
	return nil
}

func (s *affinityState) score(n *node) int64 {
	var sum int64
	for at, score := range s.scores {
		if n.Labels[at.key] == at.value {
			sum += score
		}
	}
	return sum
}
