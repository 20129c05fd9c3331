package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// node is a Node with the sum of what runs there, kept up to date pod by pod.
type node struct {
	*corev1.Node
	// What every filter asks is kept here: thousands of Nodes do not stay in the
	// processor's cache.
	unschedulable bool
	taints        []corev1.Taint

	allocatable amounts
	requested   amounts
	assumed     amounts // like requested, with assumedRequests; for scores
	pods        []*pod
	ports       map[hostPort]int
	images      map[string]int64 // name → size in bytes
	nominated   []*pod           // preemptors that wait for their victims here
}

// cluster is the scheduler's picture of nodes and placed pods. It is changed
// only by the scheduler's goroutine and every change costs what it touches.
type cluster struct {
	nodes      []*node // in a stable order that rotates for fairness
	byName     map[string]*node
	placed     map[types.UID]placement
	inhabited  map[string]map[*pod]*node // pods on known nodes, by namespace
	counters   counters
	domains    map[string]domain        // by topology key; forgotten when nodes come, go or change their labels
	existing   map[string]*existingTerm // affinity terms of placed pods, by meaning
	imageNodes map[string]int           // image name → nodes that have it
	claimUsers map[string]int           // namespace/name of a volume claim → placed pods that use it
	homeless   map[string][]*pod        // pods on nodes that are not known (any more, or yet), by node name
	start      int                      // where the next search for nodes begins

	namespaceLabels func(namespace string) labels.Set
}

type placement struct {
	pod  *pod
	node *node  // nil: the pod is homeless
	name string // of the node
}

func newCluster(namespaceLabels func(string) labels.Set) *cluster {
	return &cluster{
		byName:          map[string]*node{},
		placed:          map[types.UID]placement{},
		inhabited:       map[string]map[*pod]*node{},
		counters:        newCounters(),
		existing:        map[string]*existingTerm{},
		imageNodes:      map[string]int{},
		claimUsers:      map[string]int{},
		homeless:        map[string][]*pod{},
		namespaceLabels: namespaceLabels,
	}
}

// setNode adds a node or takes over its new state.
func (c *cluster) setNode(obj *corev1.Node) {
	n := c.byName[obj.Name]
	if n == nil {
		n = &node{ports: map[hostPort]int{}}
		c.byName[obj.Name] = n
		c.nodes = append(c.nodes, n)
		c.domains = nil
		defer c.bringHome(obj.Name)
	}
	if n.Node != nil && !sameLabels(n.Node.Labels, obj.Labels) {
		c.domains = nil
		c.counters.forgetTopologies()
	}
	for image := range n.images {
		c.imageNodes[image]--
	}
	n.Node, n.unschedulable, n.taints = obj, obj.Spec.Unschedulable, obj.Spec.Taints
	n.allocatable = amountsOf(obj.Status.Allocatable)
	n.images = make(map[string]int64, len(obj.Status.Images))
	for i := range obj.Status.Images {
		for _, name := range obj.Status.Images[i].Names {
			n.images[name] = obj.Status.Images[i].SizeBytes
		}
	}
	for image := range n.images {
		c.imageNodes[image]++
	}
}

func sameLabels(a, b map[string]string) bool { return labels.Equals(a, b) }

// bringHome counts the pods that were on the node before it was known: a node
// object that was deleted and registers anew still has all its pods.
func (c *cluster) bringHome(name string) {
	pods := c.homeless[name]
	delete(c.homeless, name)
	for _, p := range pods {
		delete(c.placed, p.UID)
		c.place(p, name)
	}
}

// removeNode forgets a node. Its pods are homeless until their own deletion.
func (c *cluster) removeNode(name string) {
	n := c.byName[name]
	if n == nil {
		return
	}
	delete(c.byName, name)
	c.domains = nil
	for image := range n.images {
		c.imageNodes[image]--
	}
	c.nodes = slices.DeleteFunc(c.nodes, func(o *node) bool { return o == n })
	for _, p := range slices.Clone(n.pods) {
		c.place(p, name)
	}
}

// place counts p on the node called name, in place of an earlier state of p.
func (c *cluster) place(p *pod, name string) {
	// Most changes of a placed pod are of its status alone.
	if was, ok := c.placed[p.UID]; ok && was.name == name && was.node != nil && was.node == c.byName[name] && countsAlike(was.pod, p) {
		was.node.pods[slices.Index(was.node.pods, was.pod)] = p
		delete(c.inhabited[p.Namespace], was.pod)
		c.inhabited[p.Namespace][p] = was.node
		c.placed[p.UID] = placement{p, was.node, name}
		return
	}
	c.unplace(p.UID)
	n := c.byName[name]
	c.placed[p.UID] = placement{p, n, name}
	if n == nil {
		c.homeless[name] = append(c.homeless[name], p)
		return
	}
	c.count(p, n, 1)
	n.pods = append(n.pods, p)
	if c.inhabited[p.Namespace] == nil {
		c.inhabited[p.Namespace] = map[*pod]*node{}
	}
	c.inhabited[p.Namespace][p] = n
}

// countsAlike tells whether two states of a pod mean the same for count: what
// else that looks at never changes.
func countsAlike(a, b *pod) bool {
	return a.requests.equal(&b.requests) && a.assumed.equal(&b.assumed) && labels.Equals(a.Labels, b.Labels) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
}

func (c *cluster) unplace(uid types.UID) {
	was, ok := c.placed[uid]
	if !ok {
		return
	}
	delete(c.placed, uid)
	if was.node == nil {
		c.homeless[was.name] = slices.DeleteFunc(c.homeless[was.name], func(o *pod) bool { return o == was.pod })
		if len(c.homeless[was.name]) == 0 {
			delete(c.homeless, was.name)
		}
		return
	}
	c.count(was.pod, was.node, -1)
	was.node.pods = slices.DeleteFunc(was.node.pods, func(o *pod) bool { return o == was.pod })
	if delete(c.inhabited[was.pod.Namespace], was.pod); len(c.inhabited[was.pod.Namespace]) == 0 {
		delete(c.inhabited, was.pod.Namespace)
	}
}

// count adds (1) or takes away (-1) what p means for n and the counters.
func (c *cluster) count(p *pod, n *node, sign int) {
	n.requested.add(&p.requests, int64(sign))
	n.assumed.add(&p.assumed, int64(sign))
	n.requested.pods += int64(sign)
	for _, port := range p.ports {
		if n.ports[port] += sign; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	for _, claim := range p.claims {
		if c.claimUsers[claim] += sign; c.claimUsers[claim] == 0 {
			delete(c.claimUsers, claim)
		}
	}
	for t := range c.counters.thatMayMatch(p) {
		if (t.deleting || p.DeletionTimestamp == nil) && t.selection.matches(p.Pod, c.namespaceLabels) {
			t.add(n, sign)
		}
	}
	c.countTerms(p, n, sign)
}

// domain is what nodes have under one topology key.
type domain struct {
	nodes  int            // that have the label
	values map[string]int // nodes by value
}

func (c *cluster) domain(topologyKey string) domain {
	if d, ok := c.domains[topologyKey]; ok {
		return d
	}
	d := domain{values: map[string]int{}}
	for _, n := range c.nodes {
		if value, ok := n.Labels[topologyKey]; ok {
			d.nodes++
			d.values[value]++
		}
	}
	if c.domains == nil {
		c.domains = map[string]domain{}
	}
	c.domains[topologyKey] = d
	return d
}
