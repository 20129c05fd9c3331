package scheduler

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	podresources "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// amounts of resources: CPU in millicores, the rest in the resource's own unit.
type amounts struct {
	cpu, memory, ephemeral, pods int64
	scalar                       map[corev1.ResourceName]int64 // nil when there are none
}

func amountsOf(list corev1.ResourceList) amounts {
	var a amounts
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			a.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.ephemeral = q.Value()
		case corev1.ResourcePods:
			a.pods = q.Value()
		default:
			if a.scalar == nil {
				a.scalar = make(map[corev1.ResourceName]int64)
			}
			a.scalar[name] = q.Value()
		}
	}
	return a
}

// add adds b times sign (1 or -1).
func (a *amounts) add(b *amounts, sign int64) {
	a.cpu += sign * b.cpu
	a.memory += sign * b.memory
	a.ephemeral += sign * b.ephemeral
	for name, v := range b.scalar {
		if a.scalar == nil {
			a.scalar = make(map[corev1.ResourceName]int64)
		}
		a.scalar[name] += sign * v
	}
}

func (a *amounts) equal(b *amounts) bool {
	return a.cpu == b.cpu && a.memory == b.memory && a.ephemeral == b.ephemeral && a.pods == b.pods && maps.Equal(a.scalar, b.scalar)
}

// Requests that scoring assumes for containers that name none, so that they
// spread too (kube-scheduler's DefaultMilliCPURequest and DefaultMemoryRequest).
var assumedRequests = corev1.ResourceList{
	corev1.ResourceCPU:    *resource.NewMilliQuantity(100, resource.DecimalSI),
	corev1.ResourceMemory: *resource.NewQuantity(200<<20, resource.BinarySI),
}

type hostPort struct {
	protocol, ip string
	port         int32
}

// term is a compiled pod (anti-)affinity term.
type term struct {
	counter     *counter // of the pods that the term selects
	topologyKey string
	weight      int64 // of preferred terms
}

// pod is a Pod with everything that scheduling asks of it compiled once.
// It belongs to the scheduler's one goroutine.
type pod struct {
	*corev1.Pod
	priority  int32
	requests  amounts
	assumed   amounts // requests with assumedRequests filled in; for scores
	ports     []hostPort
	images    []string // as nodes name them
	claims    []string // volume claims, as namespace/name
	nodeMatch nodeaffinity.RequiredNodeAffinity
	choosy    bool                                   // nodeMatch may refuse a node
	pinned    sets.Set[string]                       // the only nodes whose names its affinity allows; nil: any
	nodeTerms *nodeaffinity.PreferredSchedulingTerms // nil: none

	affinity, antiAffinity                   []selection // required
	preferredAffinity, preferredAntiAffinity []selection
	spread                                   []constraint
}

// selection is a pod affinity term before it is counted anywhere.
type selection struct {
	namespaces        sets.Set[string]
	namespaceSelector labels.Selector // nil: none
	selector          labels.Selector
	topologyKey       string
	weight            int64
	key               string // equal for equal selections, whatever the topology
}

func (s *selection) matches(p *corev1.Pod, namespaceLabels func(string) labels.Set) bool {
	if !s.namespaces.Has(p.Namespace) &&
		(s.namespaceSelector == nil || !s.namespaceSelector.Matches(namespaceLabels(p.Namespace))) {
		return false
	}
	return s.selector.Matches(labels.Set(p.Labels))
}

// constraint is a compiled topology spread constraint.
type constraint struct {
	selection
	maxSkew, minDomains int64
	hard                bool
	byDefault           bool // nodes without the topology's label count for the other constraints
	honorAffinity       bool
	honorTaints         bool
}

func newPod(p *corev1.Pod) *pod {
	c := &pod{Pod: p, nodeMatch: nodeaffinity.GetRequiredNodeAffinity(p), choosy: len(p.Spec.NodeSelector) > 0}
	if p.Spec.Priority != nil {
		c.priority = *p.Spec.Priority
	}
	c.requests = amountsOf(podresources.PodRequests(p, podresources.PodResourcesOptions{UseStatusResources: true}))
	c.assumed = amountsOf(podresources.PodRequests(p, podresources.PodResourcesOptions{UseStatusResources: true, NonMissingContainerRequests: assumedRequests}))
	for i := range p.Spec.Containers {
		c.addContainer(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if r := p.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			c.addContainer(&p.Spec.InitContainers[i])
		}
	}
	for i := range p.Spec.Volumes {
		if name := claimName(p, &p.Spec.Volumes[i]); name != "" {
			c.claims = append(c.claims, p.Namespace+"/"+name)
		}
	}
	if a := p.Spec.Affinity; a != nil {
		c.addAffinity(a)
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c.spread = append(c.spread, newConstraint(p, &p.Spec.TopologySpreadConstraints[i]))
	}
	return c
}

func (c *pod) addContainer(container *corev1.Container) {
	c.images = append(c.images, normalImage(container.Image))
	for _, port := range container.Ports {
		if port.HostPort <= 0 {
			continue
		}
		h := hostPort{protocol: string(port.Protocol), ip: port.HostIP, port: port.HostPort}
		if h.protocol == "" {
			h.protocol = string(corev1.ProtocolTCP)
		}
		if h.ip == "" {
			h.ip = "0.0.0.0"
		}
		c.ports = append(c.ports, h)
	}
}

func (c *pod) addAffinity(a *corev1.Affinity) {
	if a.NodeAffinity != nil {
		c.choosy = c.choosy || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
		c.pinned = pinnedTo(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		if terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
			c.nodeTerms = terms
		}
	}
	if pa := a.PodAffinity; pa != nil {
		c.affinity = selections(c.Pod, pa.RequiredDuringSchedulingIgnoredDuringExecution)
		c.preferredAffinity = weighted(c.Pod, pa.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if pa := a.PodAntiAffinity; pa != nil {
		c.antiAffinity = selections(c.Pod, pa.RequiredDuringSchedulingIgnoredDuringExecution)
		c.preferredAntiAffinity = weighted(c.Pod, pa.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

// pinnedTo gives the node names that a selector is limited to, as that of a
// daemon set's pod is; nil if it is not.
func pinnedTo(s *corev1.NodeSelector) sets.Set[string] {
	if s == nil || len(s.NodeSelectorTerms) == 0 {
		return nil
	}
	names := sets.Set[string]{}
	for i := range s.NodeSelectorTerms {
		var term sets.Set[string]
		for _, r := range s.NodeSelectorTerms[i].MatchFields {
			if r.Key != metav1.ObjectNameField || r.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			if values := sets.New(r.Values...); term == nil {
				term = values
			} else {
				term = term.Intersection(values)
			}
		}
		if term == nil {
			return nil // the terms are alternatives: this one allows any name
		}
		names = names.Union(term)
	}
	return names
}

func selections(p *corev1.Pod, terms []corev1.PodAffinityTerm) []selection {
	out := make([]selection, len(terms))
	for i := range terms {
		out[i] = newSelection(p, &terms[i])
	}
	return out
}

func weighted(p *corev1.Pod, terms []corev1.WeightedPodAffinityTerm) []selection {
	out := make([]selection, len(terms))
	for i := range terms {
		out[i] = newSelection(p, &terms[i].PodAffinityTerm)
		out[i].weight = int64(terms[i].Weight)
	}
	return out
}

func newSelection(p *corev1.Pod, t *corev1.PodAffinityTerm) selection {
	s := selection{topologyKey: t.TopologyKey, selector: compile(t.LabelSelector), namespaces: sets.New(t.Namespaces...)}
	for _, key := range t.MatchLabelKeys {
		s.selector = withValue(s.selector, key, p.Labels, true)
	}
	for _, key := range t.MismatchLabelKeys {
		s.selector = withValue(s.selector, key, p.Labels, false)
	}
	if t.NamespaceSelector != nil {
		s.namespaceSelector = compile(t.NamespaceSelector)
	} else if len(t.Namespaces) == 0 {
		s.namespaces.Insert(p.Namespace)
	}
	s.setKey()
	return s
}

func newConstraint(p *corev1.Pod, t *corev1.TopologySpreadConstraint) constraint {
	c := constraint{
		selection:     selection{topologyKey: t.TopologyKey, selector: compile(t.LabelSelector), namespaces: sets.New(p.Namespace)},
		maxSkew:       int64(t.MaxSkew),
		minDomains:    1,
		hard:          t.WhenUnsatisfiable == corev1.DoNotSchedule,
		honorAffinity: t.NodeAffinityPolicy == nil || *t.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
		honorTaints:   t.NodeTaintsPolicy != nil && *t.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
	}
	if t.MinDomains != nil {
		c.minDomains = int64(*t.MinDomains)
	}
	for _, key := range t.MatchLabelKeys {
		c.selector = withValue(c.selector, key, p.Labels, true)
	}
	c.setKey()
	return c
}

func (s *selection) setKey() {
	ns := "-"
	if s.namespaceSelector != nil {
		ns = s.namespaceSelector.String()
	}
	for _, n := range sets.List(s.namespaces) {
		ns += "," + n
	}
	s.key = strconv.Quote(ns) + s.selector.String()
}

func compile(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil { // refused by validation; select nothing rather than all
		return labels.Nothing()
	}
	return selector
}

// withValue narrows selector to pods that have (or have not) the same value
// under key; the key counts only if the pod has it.
func withValue(selector labels.Selector, key string, podLabels map[string]string, same bool) labels.Selector {
	value, ok := podLabels[key]
	if !ok {
		return selector
	}
	op := "in"
	if !same {
		op = "notin"
	}
	if r, err := labels.ParseToRequirements(key + " " + op + " (" + value + ")"); err == nil {
		return selector.Add(r...)
	}
	return selector
}
