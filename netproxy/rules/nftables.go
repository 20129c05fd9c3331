package rules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// ErrNoNFT means the nft executable is not installed.
var ErrNoNFT = errors.New("nft is not installed: install the package \"nftables\"")

// nftTable holds all that is ours, in family ip.
const nftTable = "orch"

// nftHooks are the chains that the kernel calls.
var nftHooks = map[string]struct {
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
}{
	nftPreRouted:      {knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority},
	"nat-prerouting":  {knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority},
	"nat-output":      {knftables.NATType, knftables.OutputHook, knftables.DNATPriority},
	"nat-postrouting": {knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority},
	"filter-input":    {knftables.FilterType, knftables.InputHook, knftables.FilterPriority},
	"filter-forward":  {knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority},
	"filter-output":   {knftables.FilterType, knftables.OutputHook, knftables.FilterPriority},
}

// NFTables is the Filter of mode nftables: one table, whose maps lead from a
// destination to its chain in one step however many services there are. Every
// change is one transaction.
type NFTables struct {
	facts  Facts
	nft    knftables.Interface
	owners map[string]*nftFragment
	// desired, with all who want an element: two services may claim the same
	// external address, of which the first by name gets it.
	chains   map[string][]string
	sticky   map[string]time.Duration
	elements map[element]map[string]string
	// touched since the last Apply; all is true when nothing is known of the
	// kernel, scratch when taking over what it holds has failed.
	touchedChains   map[string]bool
	touchedSticky   map[string]bool
	touchedElements map[element]bool
	all, scratch    bool
	// applied is what the kernel holds.
	appliedChains   map[string][]string
	appliedSticky   map[string]time.Duration
	appliedElements map[element]string

	own atomic.Int64 // changes of ours that the kernel has not told of yet
}

// NewNFTables looks for nft; ErrNoNFT if there is none.
func NewNFTables(facts Facts) (*NFTables, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, fmt.Errorf("nft: %w", ErrNoNFT)
	}
	nft, err := knftables.New(knftables.IPv4Family, nftTable)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return newNFTables(facts, nft), nil
}

func newNFTables(facts Facts, nft knftables.Interface) *NFTables {
	return &NFTables{
		facts: facts, nft: nft, all: true, owners: make(map[string]*nftFragment),
		chains: nftBase(&facts), sticky: make(map[string]time.Duration), elements: make(map[element]map[string]string),
		touchedChains: make(map[string]bool), touchedSticky: make(map[string]bool), touchedElements: make(map[element]bool),
	}
}

// SetService implements Filter.
func (n *NFTables) SetService(name types.NamespacedName, service *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) []udpFrontend {
	return n.set("service/"+name.String(), renderNFTService(service, endpointSlices, &n.facts))
}

// SetHostPorts implements Filter.
func (n *NFTables) SetHostPorts(sandbox string, ports []HostPort) []udpFrontend {
	if len(ports) == 0 {
		return n.set("sandbox/"+sandbox, nil)
	}
	return n.set("sandbox/"+sandbox, renderNFTHostPorts(sandbox, ports))
}

// set replaces an owner's fragment.
func (n *NFTables) set(owner string, next *nftFragment) []udpFrontend {
	last := n.owners[owner]
	if last == nil && next == nil {
		return nil
	}
	before, after := newFragment(), newFragment()
	if last != nil {
		for c := range last.chains {
			delete(n.chains, c)
			n.touchedChains[c] = true
		}
		for s := range last.sticky {
			delete(n.sticky, s)
			n.touchedSticky[s] = true
		}
		for e := range last.elements {
			if delete(n.elements[e], owner); len(n.elements[e]) == 0 {
				delete(n.elements, e)
			}
			n.touchedElements[e] = true
		}
		delete(n.owners, owner)
		before.udp = last.udp
	}
	if next != nil {
		n.take(owner, next)
		after.udp = next.udp
	}
	return staleFrontends(before, after)
}

func (n *NFTables) take(owner string, f *nftFragment) {
	for c, rules := range f.chains {
		n.chains[c] = rules
		n.touchedChains[c] = true
	}
	for s, timeout := range f.sticky {
		n.sticky[s] = timeout
		n.touchedSticky[s] = true
	}
	for e, verdict := range f.elements {
		if n.elements[e] == nil {
			n.elements[e] = make(map[string]string)
		}
		n.elements[e][owner] = verdict
		n.touchedElements[e] = true
	}
	n.owners[owner] = f
}

// verdict is what an element leads to: the first owner by name decides.
func (n *NFTables) verdict(e element) (string, bool) {
	owners := n.elements[e]
	if len(owners) == 0 {
		return "", false
	}
	return owners[slices.Min(slices.Collect(maps.Keys(owners)))], true
}

// Prepare implements Filter. A table that is there has all that pods need.
func (n *NFTables) Prepare(ctx context.Context) error {
	chains, err := n.nft.List(ctx, "chains")
	if err == nil && slices.Contains(chains, nftServices) {
		return nil
	}
	return n.Apply(ctx)
}

// Apply implements Filter.
func (n *NFTables) Apply(ctx context.Context) error {
	if n.all {
		if err := n.touchAll(ctx); err != nil {
			return err
		}
	}
	tx := n.nft.NewTransaction()
	n.write(tx)
	if tx.NumOperations() > 0 {
		n.own.Add(1)
		if err := n.nft.Run(ctx, tx); err != nil {
			n.own.Add(-1)
			n.scratch = n.all
			n.all = true
			return fmt.Errorf("apply rules: %w", err)
		}
	}
	n.commit()
	return nil
}

// touchAll prepares to write everything. What an earlier process left is taken
// over rather than removed, as its sets remember the clients of sticky services.
func (n *NFTables) touchAll(ctx context.Context) error {
	n.appliedChains, n.appliedSticky, n.appliedElements = make(map[string][]string), make(map[string]time.Duration), make(map[element]string)
	clear(n.touchedElements)
	if !n.scratch {
		if err := n.adopt(ctx); err != nil {
			return err
		}
	}
	for c := range n.chains {
		n.touchedChains[c] = true
	}
	for s := range n.sticky {
		n.touchedSticky[s] = true
	}
	for e := range n.elements {
		n.touchedElements[e] = true
	}
	return nil
}

// adopt notes which chains and sets are there, with contents unknown.
func (n *NFTables) adopt(ctx context.Context) error {
	chains, err := n.nft.List(ctx, "chains")
	if knftables.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read rules: %w", err)
	}
	sets, err := n.nft.List(ctx, "sets")
	if err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("read rules: %w", err)
	}
	for _, c := range chains {
		n.appliedChains[c] = []string{"unknown"}
		n.touchedChains[c] = true
	}
	for _, s := range sets {
		n.appliedSticky[s] = -1
		n.touchedSticky[s] = true
	}
	return nil
}

// write makes the transaction. Elements that go are removed first, so that
// nothing refers to the chains that go; what is new refers to chains and sets
// that are declared before.
func (n *NFTables) write(tx *knftables.Transaction) {
	if n.all {
		n.writeTable(tx)
	}
	for _, e := range sortedElements(n.touchedElements) {
		if old, held := n.appliedElements[e]; held {
			if v, _ := n.verdict(e); v != old {
				tx.Delete(knftElement(e, old))
			}
		}
	}
	for _, s := range slices.Sorted(maps.Keys(n.touchedSticky)) {
		timeout, wanted := n.sticky[s]
		if old, held := n.appliedSticky[s]; wanted && (!held || old != timeout) {
			tx.Add(&knftables.Set{Name: s, Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Timeout: &timeout})
		}
	}
	gone := n.writeChains(tx)
	for _, e := range sortedElements(n.touchedElements) {
		v, wanted := n.verdict(e)
		if old, held := n.appliedElements[e]; wanted && (!held || old != v) {
			tx.Add(knftElement(e, v))
		}
	}
	for _, c := range gone {
		tx.Delete(&knftables.Chain{Name: c})
	}
	for _, s := range slices.Sorted(maps.Keys(n.touchedSticky)) {
		if _, wanted := n.sticky[s]; !wanted {
			if _, held := n.appliedSticky[s]; held {
				tx.Delete(&knftables.Set{Name: s})
			}
		}
	}
}

// writeTable makes the table and empties the maps; within the one transaction
// nothing is ever missing.
func (n *NFTables) writeTable(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	if n.scratch {
		tx.Delete(&knftables.Table{})
		tx.Add(&knftables.Table{})
	}
	for _, name := range slices.Sorted(maps.Keys(nftMaps)) {
		tx.Add(&knftables.Map{Name: name, Type: nftMaps[name]})
		tx.Flush(&knftables.Map{Name: name})
	}
}

// writeChains declares and fills the chains that changed, empties those that
// go, and gives them.
func (n *NFTables) writeChains(tx *knftables.Transaction) (gone []string) {
	var changed []string
	for _, c := range slices.Sorted(maps.Keys(n.touchedChains)) {
		rules, wanted := n.chains[c]
		old, held := n.appliedChains[c]
		switch {
		case wanted && held && slices.Equal(rules, old):
		case wanted:
			tx.Add(knftChain(c))
			if held {
				tx.Flush(&knftables.Chain{Name: c})
			}
			changed = append(changed, c)
		case held:
			tx.Flush(&knftables.Chain{Name: c})
			gone = append(gone, c)
		}
	}
	for _, c := range changed {
		for _, rule := range n.chains[c] {
			tx.Add(&knftables.Rule{Chain: c, Rule: rule})
		}
	}
	return gone
}

func (n *NFTables) commit() {
	for c := range n.touchedChains {
		if rules, wanted := n.chains[c]; wanted {
			n.appliedChains[c] = rules
		} else {
			delete(n.appliedChains, c)
		}
	}
	for s := range n.touchedSticky {
		if timeout, wanted := n.sticky[s]; wanted {
			n.appliedSticky[s] = timeout
		} else {
			delete(n.appliedSticky, s)
		}
	}
	for e := range n.touchedElements {
		if v, wanted := n.verdict(e); wanted {
			n.appliedElements[e] = v
		} else {
			delete(n.appliedElements, e)
		}
	}
	clear(n.touchedChains)
	clear(n.touchedSticky)
	clear(n.touchedElements)
	n.all, n.scratch = false, false
}

// Repair implements Filter: another program's `nft flush ruleset`.
func (n *NFTables) Repair(ctx context.Context) (bool, error) {
	intact, err := n.intact(ctx)
	if err != nil || intact {
		return false, err
	}
	n.all = true
	return true, nil
}

// intact counts what the kernel holds of ours.
func (n *NFTables) intact(ctx context.Context) (bool, error) {
	rules, err := n.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the rules: %w", err)
	}
	chains, err := n.nft.List(ctx, "chains")
	if err != nil {
		return false, fmt.Errorf("look at the rules: %w", err)
	}
	missing := make(map[string]int, len(n.appliedChains))
	for c, applied := range n.appliedChains {
		missing[c] = len(applied)
	}
	for _, r := range rules {
		missing[r.Chain]--
	}
	for _, count := range missing {
		if count != 0 {
			return false, nil
		}
	}
	if len(chains) != len(n.appliedChains) {
		return false, nil
	}
	return n.mapsIntact(ctx)
}

func (n *NFTables) mapsIntact(ctx context.Context) (bool, error) {
	missing := make(map[string]int)
	for e := range n.appliedElements {
		missing[e.set]++
	}
	for name := range nftMaps {
		elements, err := n.nft.ListElements(ctx, "map", name)
		if knftables.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look at the rules: %w", err)
		}
		if len(elements) != missing[name] {
			return false, nil
		}
	}
	return true, nil
}

// Watch calls changed after another program has changed rules of the machine,
// until ctx ends. A change of ours is told from others' by their number alone: at
// worst one too many is looked at.
func (n *NFTables) Watch(ctx context.Context, changed func()) error {
	return watchForeign(ctx, func(int) bool {
		if n.own.Add(-1) >= 0 {
			return true
		}
		n.own.Add(1)
		return false
	}, changed)
}

func (n *NFTables) healthPorts() map[uint16]healthPort {
	var found map[uint16]healthPort
	for _, f := range n.owners {
		if f.health != nil {
			if found == nil {
				found = make(map[uint16]healthPort)
			}
			found[f.health.port] = *f.health
		}
	}
	return found
}

// CleanupNFTables removes the table, if there is one.
func CleanupNFTables(ctx context.Context) error {
	if exec.CommandContext(ctx, "nft", "list", "table", "ip", nftTable).Run() != nil {
		return nil // no nft, or no table
	}
	if out, err := exec.CommandContext(ctx, "nft", "delete", "table", "ip", nftTable).CombinedOutput(); err != nil {
		return fmt.Errorf("remove nftables rules: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func knftChain(name string) *knftables.Chain {
	c := &knftables.Chain{Name: name}
	if h, ok := nftHooks[name]; ok {
		c.Type, c.Hook, c.Priority = &h.kind, &h.hook, &h.priority
	}
	return c
}

func knftElement(e element, verdict string) *knftables.Element {
	return &knftables.Element{Map: e.set, Key: strings.Split(e.key, " . "), Value: []string{verdict}}
}

func sortedElements(set map[element]bool) []element {
	return slices.SortedFunc(maps.Keys(set), func(a, b element) int {
		return strings.Compare(a.set+" "+a.key, b.set+" "+b.key)
	})
}
