package scheduler

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

// Counters kept at most; the least recently used are forgotten beyond it.
const maxCounters = 512

func (c *cluster) counter(s *selection, deleting bool, attempt int) *counter {
	key := s.key
	if deleting {
		key = "+" + key
	}
	t := c.counters[key]
	if t == nil {
		c.forgetCounters()
		t = &counter{selection: *s, deleting: deleting, perNode: map[*node]int{}}
		for _, n := range c.nodes {
			for _, p := range n.pods {
				if (deleting || p.DeletionTimestamp == nil) && s.matches(p.Pod, c.namespaceLabels) {
					t.add(n, 1)
				}
			}
		}
		c.counters[key] = t
	}
	t.used = attempt
	return t
}

// namespaceChanged forgets what was counted by the labels of namespaces.
func (c *cluster) namespaceChanged() {
	for key, t := range c.counters {
		if t.selection.namespaceSelector != nil {
			delete(c.counters, key)
		}
	}
}

func (c *cluster) forgetCounters() {
	if len(c.counters) < maxCounters {
		return
	}
	newest := 0
	for _, t := range c.counters {
		newest = max(newest, t.used)
	}
	for key, t := range c.counters {
		if t.used < newest-maxCounters/2 {
			delete(c.counters, key)
		}
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
