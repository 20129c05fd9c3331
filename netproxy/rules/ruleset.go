package rules

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Ruleset is the desired rules, kept by owner so that a change costs what it
// touches. Not safe for concurrent use.
type Ruleset struct {
	facts   Facts
	owners  map[string]*fragment
	buckets map[Chain]*members
	chains  map[Chain][]string
	stale   map[Chain]bool // chains to compare with what is applied
}

type members struct {
	bucket
	owners map[string]bool
}

// NewRuleset returns the rules of a node without services.
func NewRuleset(facts Facts) *Ruleset {
	r := &Ruleset{
		facts:   facts,
		owners:  make(map[string]*fragment),
		buckets: make(map[Chain]*members),
		chains:  base(&facts),
		stale:   make(map[Chain]bool),
	}
	for _, c := range dispatchChains() {
		r.chains[c] = dispatchTail(c)
	}
	for c := range r.chains {
		r.stale[c] = true
	}
	return r
}

// Desired is the whole rule set of a node as a pure function.
func Desired(facts Facts, services []*corev1.Service, endpointSlices map[types.NamespacedName][]*discoveryv1.EndpointSlice, hostPorts map[string][]HostPort) *Ruleset {
	r := NewRuleset(facts)
	for _, service := range services {
		name := types.NamespacedName{Namespace: service.Namespace, Name: service.Name}
		r.SetService(name, service, endpointSlices[name])
	}
	for sandbox, ports := range hostPorts {
		r.SetHostPorts(sandbox, ports)
	}
	return r
}

// SetService puts one service's rules in place of its former ones; a nil
// service has none.
func (r *Ruleset) SetService(name types.NamespacedName, service *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) []udpFrontend {
	return r.set("service/"+name.String(), renderService(service, endpointSlices, &r.facts))
}

// SetHostPorts puts one sandbox's host ports in place of its former ones.
func (r *Ruleset) SetHostPorts(sandbox string, ports []HostPort) []udpFrontend {
	if len(ports) == 0 {
		return r.set("sandbox/"+sandbox, nil)
	}
	return r.set("sandbox/"+sandbox, renderHostPorts(sandbox, ports))
}

// set replaces an owner's fragment and returns the UDP front ends whose
// connections may now be stale.
func (r *Ruleset) set(owner string, next *fragment) []udpFrontend {
	last := r.owners[owner]
	if last == nil && next == nil {
		return nil
	}
	touched := make(map[Chain]bool)
	if last != nil {
		for c := range last.chains {
			delete(r.chains, c)
			r.stale[c] = true
		}
		for _, e := range last.entries {
			delete(r.buckets[e.Chain].owners, owner)
			touched[e.Chain] = true
		}
		delete(r.owners, owner)
	}
	if next != nil {
		for c, rules := range next.chains {
			r.chains[c] = rules
			r.stale[c] = true
		}
		for _, e := range next.entries {
			r.member(e.bucket, owner)
			touched[e.Chain] = true
		}
		r.owners[owner] = next
	}
	r.refill(touched)
	return staleFrontends(last, next)
}

func (r *Ruleset) member(b bucket, owner string) {
	m := r.buckets[b.Chain]
	if m == nil {
		m = &members{bucket: b, owners: make(map[string]bool)}
		r.buckets[b.Chain] = m
	}
	m.owners[owner] = true
}

// refill writes the touched buckets anew, and the chains that lead to buckets
// which came or went.
func (r *Ruleset) refill(touched map[Chain]bool) {
	parents := make(map[Chain]bool)
	for c := range touched {
		m := r.buckets[c]
		_, existed := r.chains[c]
		r.stale[c] = true
		if len(m.owners) == 0 {
			delete(r.buckets, c)
			if m.selector == "" {
				r.chains[c] = dispatchTail(c)
				continue
			}
			delete(r.chains, c)
			parents[m.parent] = true
			continue
		}
		r.chains[c] = r.bucketRules(m)
		if !existed && m.selector != "" {
			parents[m.parent] = true
		}
	}
	for parent := range parents {
		r.chains[parent] = r.dispatchRules(parent)
		r.stale[parent] = true
	}
}

func (r *Ruleset) bucketRules(m *members) []string {
	var rules []string
	for _, owner := range slices.Sorted(maps.Keys(m.owners)) {
		for _, e := range r.owners[owner].entries {
			if e.Chain == m.Chain {
				rules = append(rules, e.rule)
			}
		}
	}
	return rules
}

func (r *Ruleset) dispatchRules(parent Chain) []string {
	var rules []string
	for _, c := range slices.SortedFunc(maps.Keys(r.buckets), compareChains) {
		if m := r.buckets[c]; m.parent == parent && m.selector != "" {
			rules = append(rules, m.selector+" -j "+c.Name)
		}
	}
	return append(rules, dispatchTail(parent)...)
}

func compareChains(a, b Chain) int {
	return strings.Compare(a.Table+"/"+a.Name, b.Table+"/"+b.Name)
}

// Transaction is the restore input that takes the applied rules to the desired
// ones, considering the stale chains alone; nil if there is nothing to do.
func (r *Ruleset) Transaction(applied map[Chain][]string) []byte {
	var out bytes.Buffer
	for _, table := range tables {
		var written, removed []Chain
		for c := range r.stale {
			if c.Table != table {
				continue
			}
			want, wanted := r.chains[c]
			have, exists := applied[c]
			switch {
			case wanted && (!exists || !slices.Equal(want, have)):
				written = append(written, c)
			case !wanted && exists:
				removed = append(removed, c)
			}
		}
		r.writeTable(&out, table, written, removed)
	}
	if out.Len() == 0 {
		return nil
	}
	return out.Bytes()
}

// writeTable declares every chain first, which empties it, so that the rules
// may then refer to each other in any order and removed chains are free.
func (r *Ruleset) writeTable(out *bytes.Buffer, table string, written, removed []Chain) {
	if len(written)+len(removed) == 0 {
		return
	}
	slices.SortFunc(written, compareChains)
	slices.SortFunc(removed, compareChains)
	out.WriteString("*" + table + "\n")
	for _, c := range slices.Concat(written, removed) {
		out.WriteString(":" + c.Name + " - [0:0]\n")
	}
	for _, c := range written {
		for _, rule := range r.chains[c] {
			out.WriteString("-A " + c.Name + " " + rule + "\n")
		}
	}
	for _, c := range removed {
		out.WriteString("-X " + c.Name + "\n")
	}
	out.WriteString("COMMIT\n")
}

// commit notes in applied that the stale chains now are as desired.
func (r *Ruleset) commit(applied map[Chain][]string) {
	for c := range r.stale {
		if rules, wanted := r.chains[c]; wanted {
			applied[c] = rules
		} else {
			delete(applied, c)
		}
	}
	clear(r.stale)
}

// restale makes the next transaction consider every chain, those that exist
// in the kernel included.
func (r *Ruleset) restale(existing map[Chain]int) {
	for c := range r.chains {
		r.stale[c] = true
	}
	for c := range existing {
		r.stale[c] = true
	}
}

// healthPorts lists the health ports of services by port.
func (r *Ruleset) healthPorts() map[uint16]healthPort {
	var found map[uint16]healthPort
	for _, f := range r.owners {
		if f.health != nil {
			if found == nil {
				found = make(map[uint16]healthPort)
			}
			found[f.health.port] = *f.health
		}
	}
	return found
}
