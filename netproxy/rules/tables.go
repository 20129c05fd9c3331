package rules

import (
	"context"
	"errors"
	"maps"
)

// Backend is iptables.
type Backend interface {
	// Existing counts the rules in each chain of ours and lists the jumps to them.
	Existing(context.Context) (map[Chain]int, map[Chain]Chain, error)
	// Restore applies a transaction in iptables-restore's language.
	Restore(context.Context, []byte) error
}

// Tables is the Filter of mode iptables.
type Tables struct {
	*Ruleset
	backend Backend
	applied map[Chain][]string // what the kernel holds
}

// NewTables returns the filter of a node without services.
func NewTables(facts Facts, backend Backend) *Tables {
	return &Tables{Ruleset: NewRuleset(facts), backend: backend, applied: make(map[Chain][]string)}
}

// jumps are those to chains that there are.
func (t *Tables) jumps() map[Chain]Chain {
	wanted := jumps()
	maps.DeleteFunc(wanted, func(_, target Chain) bool { return t.chains[target] == nil })
	return wanted
}

// holds tells whether all jumps are there.
func (t *Tables) holds(held map[Chain]Chain) bool {
	for from := range t.jumps() {
		if _, there := held[from]; !there {
			return false
		}
	}
	return true
}

// Prepare implements Filter.
func (t *Tables) Prepare(ctx context.Context) error {
	existing, held, err := t.backend.Existing(ctx)
	if err != nil {
		return err
	}
	first := NewRuleset(t.facts)
	for _, c := range dispatchChains() {
		if _, found := existing[c]; found {
			delete(first.stale, c)
		}
	}
	if err := t.backend.Restore(ctx, append(first.Transaction(nil), insertJumps(t.jumps(), held)...)); err != nil {
		return err
	}
	t.forgetApplied(existing)
	return nil
}

// forgetApplied assumes nothing of the kernel but which chains exist: the next
// transaction writes every chain and removes those unknown.
func (t *Tables) forgetApplied(existing map[Chain]int) {
	clear(t.applied)
	for c := range existing {
		t.applied[c] = []string{"unknown"}
	}
	t.restale(existing)
}

// Apply implements Filter.
func (t *Tables) Apply(ctx context.Context) error {
	if transaction := t.Transaction(t.applied); transaction != nil {
		if err := t.backend.Restore(ctx, transaction); err != nil {
			return errors.Join(err, t.resync(ctx))
		}
	}
	t.commit(t.applied)
	return nil
}

// resync prepares a sync from what the kernel really holds, after a failure
// that may have applied one table and not the other, or because somebody else
// changed the rules.
func (t *Tables) resync(ctx context.Context) error {
	existing, held, err := t.backend.Existing(ctx)
	if err != nil {
		return err
	}
	t.forgetApplied(existing)
	if t.holds(held) {
		return nil
	}
	return t.Prepare(ctx)
}

// Repair implements Filter: a firewall that was reloaded, somebody's iptables -F.
func (t *Tables) Repair(ctx context.Context) (bool, error) {
	existing, held, err := t.backend.Existing(ctx)
	if err != nil {
		return false, err
	}
	intact := t.holds(held)
	for c, rules := range t.applied {
		count, found := existing[c]
		intact = intact && found && count == len(rules)
	}
	if intact {
		return false, nil
	}
	return true, t.resync(ctx)
}
