package robustness

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
)

// object is the state of one key in the model. Its revision is 0 while it is not
// known: the write had no answer and nobody has read it yet.
type object struct {
	exists   bool
	value    string
	revision int64
	floor    int64 // the newest revision known to have been given to this key
}

// model is the sequential specification of one object: what a Kubernetes API
// with optimistic concurrency answers, where each write gets a revision above
// all earlier ones.
func model(base int64) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: partition,
		Init:      func() []any { return []any{object{floor: base}} },
		Step: func(state, input, output any) []any {
			c := output.(call)
			var next []any
			for _, o := range state.(object).step(&c) {
				next = append(next, o)
			}
			return next
		},
		DescribeOperation: func(_, output any) string { c := output.(call); return c.describe() },
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
	return m.ToModel()
}

func partition(operations []porcupine.Operation) [][]porcupine.Operation {
	places := make(map[string]int)
	var parts [][]porcupine.Operation
	for _, o := range operations {
		key := o.Output.(call).Key
		i, ok := places[key]
		if !ok {
			i = len(parts)
			places[key] = i
			parts = append(parts, nil)
		}
		parts[i] = append(parts[i], o)
	}
	return parts
}

// step gives the states that the object may be in after a call with this answer;
// none: this answer cannot be given in this state.
func (o object) step(c *call) []object {
	switch c.Outcome {
	case unknown:
		return append(o.do(c), o)
	case missing:
		return o.keep(!o.exists && c.Kind != create)
	case exists:
		return o.keep(o.exists && c.Kind == create)
	case conflict:
		return o.keep(o.exists && c.Expect != 0 && (o.revision == 0 || o.revision != c.Expect))
	}
	return o.do(c)
}

func (o object) keep(possible bool) []object {
	if !possible {
		return nil
	}
	return []object{o}
}

// do is a call that takes effect.
func (o object) do(c *call) []object {
	if c.Kind == create {
		if o.exists {
			return nil
		}
	} else if !o.exists {
		return nil
	}
	if c.Expect != 0 && !o.mayBe(c.Expect) {
		return nil
	}
	switch {
	case !c.writes():
		if c.Found != o.value || !o.mayBe(c.Revision) {
			return nil
		}
		o.revision, o.floor = c.Revision, max(o.floor, c.Revision)
		return []object{o}
	case c.Revision != 0 && c.Revision <= max(o.floor, c.Expect):
		return nil // a revision that is not newer than those before
	}
	next := object{exists: !c.deletes(), value: c.Value, revision: c.Revision, floor: max(o.floor, c.Expect, c.Revision)}
	if c.deletes() {
		next.value, next.revision = "", 0
	}
	return []object{next}
}

// mayBe tells whether the object can have the revision.
func (o object) mayBe(revision int64) bool {
	if o.revision == 0 {
		return revision > o.floor
	}
	return revision == o.revision
}

func (c *call) describe() string {
	what := fmt.Sprintf("%s %s", c.Kind, c.Key)
	if c.Value != "" {
		what += " = " + c.Value
	}
	if c.Expect != 0 {
		what += fmt.Sprintf(" if at %d", c.Expect)
	}
	what += fmt.Sprintf(" → %s", c.Outcome)
	if !c.writes() && c.Outcome == done {
		what += " " + c.Found
	}
	if c.Revision != 0 {
		what += fmt.Sprintf(" at %d", c.Revision)
	}
	return what + " (" + c.Server + ")"
}

// operations are the calls as the checker wants them, each list as one get of
// each key: it is as linearizable as these are.
func (h *history) operations(calls []call) []porcupine.Operation {
	var operations []porcupine.Operation
	add := func(c call) {
		operations = append(operations, porcupine.Operation{ClientId: c.Client, Input: c.Key, Output: c, Call: int64(c.Called), Return: int64(c.Returned)})
	}
	for _, c := range calls {
		if !c.Stale && (c.writes() || c.Outcome != unknown) {
			add(c)
		}
	}
	for _, l := range append(h.Listings, h.Final...) {
		for _, key := range h.Keys {
			c := call{Client: l.Client, Server: l.Server, Kind: get, Key: key, Called: l.Called, Returned: l.Returned, Outcome: missing}
			if found, ok := l.Items[key]; ok {
				c.Outcome, c.Found, c.Revision = done, found.Value, found.Revision
			}
			add(c)
		}
	}
	return operations
}

// linearizable has porcupine decide; patience bounds how long it thinks.
func (h *history) linearizable(calls []call, patience time.Duration) (porcupine.CheckResult, porcupine.LinearizationInfo, porcupine.Model) {
	m := model(h.Base)
	operations := h.operations(calls)
	result := porcupine.CheckOperationsTimeout(m, operations, patience)
	var info porcupine.LinearizationInfo
	if result != porcupine.Ok { // the picture costs much more than the answer
		_, info = porcupine.CheckOperationsVerbose(m, operations, patience)
	}
	return result, info, m
}
