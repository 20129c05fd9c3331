package scheduler

import "iter"

// counter counts the placed pods that one selection matches, by node and,
// once asked, by topology value. Affinity terms and spread constraints with the
// same selection share one, so that placing a pod costs the number of
// distinct selections and not the number of pods.
type counter struct {
	selection selection
	deleting  bool // pods that are being deleted count too (affinity; not spread)
	perNode   map[*node]int
	// topologies holds sums by topology key and value; nil entries are rebuilt.
	topologies map[string]map[string]int
	total      int
	used       int // the attempt that used it last, to forget stale ones
}

// counters are all that are kept, found by what they count.
type counters struct {
	byKey map[string]*counter
	// A pod is counted by those that name its namespace, and perhaps by those that
	// go by the namespaces' labels.
	inNamespace map[string]map[*counter]struct{}
	byLabels    map[*counter]struct{}
}

func newCounters() counters {
	return counters{map[string]*counter{}, map[string]map[*counter]struct{}{}, map[*counter]struct{}{}}
}

// Counters kept at most; the least recently used are forgotten beyond it.
const maxCounters = 512

func (c *cluster) counter(s *selection, deleting bool, attempt int) *counter {
	key := s.key
	if deleting {
		key = "+" + key
	}
	t := c.counters.byKey[key]
	if t == nil {
		c.counters.makeRoom()
		t = &counter{selection: *s, deleting: deleting, perNode: map[*node]int{}}
		t.countAll(c)
		c.counters.put(key, t)
	}
	t.used = attempt
	return t
}

// countAll counts the pods of the namespaces that the selection may be about.
func (t *counter) countAll(c *cluster) {
	s := &t.selection
	for namespace, pods := range c.inhabited {
		if s.namespaceSelector == nil && !s.namespaces.Has(namespace) {
			continue
		}
		for p, n := range pods {
			if (t.deleting || p.DeletionTimestamp == nil) && s.matches(p.Pod, c.namespaceLabels) {
				t.add(n, 1)
			}
		}
	}
}

func (c *counters) put(key string, t *counter) {
	c.byKey[key] = t
	if t.selection.namespaceSelector != nil {
		c.byLabels[t] = struct{}{}
	}
	for namespace := range t.selection.namespaces {
		if c.inNamespace[namespace] == nil {
			c.inNamespace[namespace] = map[*counter]struct{}{}
		}
		c.inNamespace[namespace][t] = struct{}{}
	}
}

func (c *counters) forget(key string) {
	t := c.byKey[key]
	delete(c.byKey, key)
	delete(c.byLabels, t)
	for namespace := range t.selection.namespaces {
		delete(c.inNamespace[namespace], t)
		if len(c.inNamespace[namespace]) == 0 {
			delete(c.inNamespace, namespace)
		}
	}
}

// thatMayMatch gives each counter that may count p once.
func (c *counters) thatMayMatch(p *pod) iter.Seq[*counter] {
	return func(yield func(*counter) bool) {
		for t := range c.inNamespace[p.Namespace] {
			if !yield(t) {
				return
			}
		}
		for t := range c.byLabels {
			if !t.selection.namespaces.Has(p.Namespace) && !yield(t) {
				return
			}
		}
	}
}

// namespaceChanged forgets what was counted by the labels of namespaces.
func (c *cluster) namespaceChanged() {
	for key, t := range c.counters.byKey {
		if t.selection.namespaceSelector != nil {
			c.counters.forget(key)
		}
	}
}

func (c *counters) makeRoom() {
	if len(c.byKey) < maxCounters {
		return
	}
	newest := 0
	for _, t := range c.byKey {
		newest = max(newest, t.used)
	}
	for key, t := range c.byKey {
		if t.used < newest-maxCounters/2 {
			c.forget(key)
		}
	}
}

// forgetTopologies drops the sums that nodes' labels have a part in.
func (c *counters) forgetTopologies() {
	for _, t := range c.byKey {
		t.topologies = nil
	}
}

func (t *counter) add(n *node, sign int) {
	t.total += sign
	if t.perNode[n] += sign; t.perNode[n] == 0 {
		delete(t.perNode, n)
	}
	for key, sums := range t.topologies {
		if value, ok := n.Labels[key]; ok {
			sums[value] += sign
		}
	}
}

// byValue gives the number of matching pods by value of the topology key.
func (t *counter) byValue(topologyKey string) map[string]int {
	if sums, ok := t.topologies[topologyKey]; ok {
		return sums
	}
	sums := map[string]int{}
	for n, count := range t.perNode {
		if value, ok := n.Labels[topologyKey]; ok {
			sums[value] += count
		}
	}
	if t.topologies == nil {
		t.topologies = map[string]map[string]int{}
	}
	t.topologies[topologyKey] = sums
	return sums
}
