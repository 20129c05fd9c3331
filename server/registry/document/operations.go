package document

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

const (
	// maxCopied is how many bytes the copies of one patch may add, as upstream's.
	maxCopied = 3 << 20
	// maxPatchWork bounds what no size does: the values that the operations of one
	// patch look at and the elements of lists that they push aside. Ten thousand
	// operations at the front of a list of ten thousand are within it.
	maxPatchWork = 100_000_000
)

var errTooMuchWork = errors.New("the operations move too much data: split the patch, or replace the whole list")

// Apply applies a JSON patch (RFC 6902) to a document. It answers as jsonpatch's
// Apply does, which takes memory in the size of what is copied and time in the
// square of the nesting.
func Apply(doc []byte, patch jsonpatch.Patch) ([]byte, error) {
	root, err := decode(doc)
	if err != nil {
		return nil, err
	}
	e := editor{root: root}
	for _, op := range patch {
		if err := e.do(op); err != nil {
			return nil, err
		}
	}
	return json.Marshal(e.root)
}

// editor applies operations one after another.
type editor struct {
	root   any
	copied int64
	work   int
}

func (e *editor) do(op jsonpatch.Operation) error {
	switch kind := op.Kind(); kind {
	case "add":
		return e.add(op)
	case "remove":
		return e.remove(op)
	case "replace":
		return e.replace(op)
	case "move":
		return e.move(op)
	case "test":
		return e.test(op)
	case "copy":
		return e.copy(op)
	default:
		return fmt.Errorf("Unexpected kind: %s", kind)
	}
}

func (e *editor) add(op jsonpatch.Operation) error {
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("add operation failed to decode path: %w", jsonpatch.ErrMissing)
	}
	at := e.find(path)
	if at == nil {
		return fmt.Errorf("add operation does not apply: doc is missing path: \"%s\": %w", path, jsonpatch.ErrMissing)
	}
	value, err := valueOf(op)
	if err == nil {
		err = at.add(value)
	}
	if err != nil {
		return fmt.Errorf("error in add for path: '%s': %w", path, err)
	}
	return nil
}

func (e *editor) remove(op jsonpatch.Operation) error {
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("remove operation failed to decode path: %w", jsonpatch.ErrMissing)
	}
	at := e.find(path)
	if at == nil {
		return fmt.Errorf("remove operation does not apply: doc is missing path: \"%s\": %w", path, jsonpatch.ErrMissing)
	}
	if err := at.remove(); err != nil {
		return fmt.Errorf("error in remove for path: '%s': %w", path, err)
	}
	return nil
}

func (e *editor) replace(op jsonpatch.Operation) error {
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("replace operation failed to decode path: %w", err)
	}
	value, err := valueOf(op)
	if path == "" {
		switch value.(type) {
		case map[string]any, []any:
			e.root = value
			return nil
		}
		return errors.New("replace operation value must be object or array")
	}
	at := e.find(path)
	if at == nil {
		return fmt.Errorf("replace operation does not apply: doc is missing path: %s: %w", path, jsonpatch.ErrMissing)
	}
	if _, missing := at.get(); missing != nil {
		return fmt.Errorf("replace operation does not apply: doc is missing key: %s: %w", path, jsonpatch.ErrMissing)
	}
	if err == nil {
		err = at.set(value)
	}
	if err != nil {
		return fmt.Errorf("error in remove for path: '%s': %w", path, err)
	}
	return nil
}

func (e *editor) move(op jsonpatch.Operation) error {
	from, err := op.From()
	if err != nil {
		return fmt.Errorf("move operation failed to decode from: %w", err)
	}
	at := e.find(from)
	if at == nil {
		return fmt.Errorf("move operation does not apply: doc is missing from path: %s: %w", from, jsonpatch.ErrMissing)
	}
	value, err := at.get()
	if err == nil {
		err = at.remove()
	}
	if err != nil {
		return fmt.Errorf("error in move for path: '%s': %w", at.key, err)
	}
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("move operation failed to decode path: %w", err)
	}
	if at = e.find(path); at == nil {
		return fmt.Errorf("move operation does not apply: doc is missing destination path: %s: %w", path, jsonpatch.ErrMissing)
	}
	if err := at.add(value); err != nil {
		return fmt.Errorf("error in move for path: '%s': %w", path, err)
	}
	return nil
}

func (e *editor) test(op jsonpatch.Operation) error {
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("test operation failed to decode path: %w", err)
	}
	have := e.root
	if path != "" {
		at := e.find(path)
		if at == nil {
			return fmt.Errorf("test operation does not apply: is missing path: %s: %w", path, jsonpatch.ErrMissing)
		}
		if have, err = at.get(); err != nil {
			return fmt.Errorf("error in test for path: '%s': %w", path, err)
		}
	}
	if want, err := valueOf(op); err != nil || !equal(have, want) {
		return fmt.Errorf("testing value %s failed: %w", path, jsonpatch.ErrTestFailed)
	}
	return nil
}

func (e *editor) copy(op jsonpatch.Operation) error {
	from, err := op.From()
	if err != nil {
		return fmt.Errorf("copy operation failed to decode from: %w", err)
	}
	at := e.find(from)
	if at == nil {
		return fmt.Errorf("copy operation does not apply: doc is missing from path: %s: %w", from, jsonpatch.ErrMissing)
	}
	value, err := at.get()
	if err != nil {
		return fmt.Errorf("error in copy for from: '%s': %w", from, err)
	}
	path, err := op.Path()
	if err != nil {
		return fmt.Errorf("copy operation failed to decode path: %w", jsonpatch.ErrMissing)
	}
	if at = e.find(path); at == nil {
		return fmt.Errorf("copy operation does not apply: doc is missing destination path: %s: %w", path, jsonpatch.ErrMissing)
	}
	if value, err = e.duplicate(value); err != nil {
		return err
	}
	if err := at.add(value); err != nil {
		return fmt.Errorf("error while adding value during copy: %w", err)
	}
	return nil
}

// duplicate counts what a copy adds. An absent value is copied as null, as
// jsonpatch does.
func (e *editor) duplicate(value any) (any, error) {
	if value == nil {
		return nil, nil
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("error while performing deep copy: %w", err)
	}
	if e.copied += int64(len(raw)); e.copied > maxCopied {
		return nil, jsonpatch.NewAccumulatedCopySizeError(maxCopied, e.copied)
	}
	return decode(raw)
}

// valueOf decodes an operation's value; a missing one is null.
func valueOf(op jsonpatch.Operation) (any, error) {
	raw := op["value"]
	if raw == nil {
		return nil, nil
	}
	return decode(*raw)
}

// place is a member of an object or list, which need not exist.
type place struct {
	e      *editor
	fields map[string]any // when in an object
	list   []any          // when in a list
	put    func(any)      // puts back the list when it has moved
	key    string
	depth  int
}

var pointerEscapes = strings.NewReplacer("~1", "/", "~0", "~")

// find follows a JSON pointer (RFC 6901) up to its last part. It gives nil when
// what the last part stands in does not exist.
func (e *editor) find(pointer string) *place {
	parts := strings.Split(pointer, "/")
	if len(parts) < 2 {
		return nil
	}
	at := e.in(e.root, func(v any) { e.root = v })
	for i, part := range parts[1:] {
		if at == nil {
			return nil
		}
		at.key, at.depth = pointerEscapes.Replace(part), i+1
		if i == len(parts)-2 {
			break
		}
		holder, next := *at, any(nil)
		if next, _ = holder.get(); next == nil {
			return nil
		}
		at = e.in(next, func(v any) { holder.store(v) })
	}
	return at
}

func (e *editor) in(v any, put func(any)) *place {
	switch v := v.(type) {
	case map[string]any:
		return &place{e: e, fields: v}
	case []any:
		return &place{e: e, list: v, put: put}
	}
	return nil
}

// get gives nil for an absent member of an object.
func (p *place) get() (any, error) {
	if p.put == nil {
		return p.fields[p.key], nil
	}
	i, err := p.index(len(p.list))
	if err != nil {
		return nil, err
	}
	return p.list[i], nil
}

// index reads the key as that of one of n elements; negative ones count from the end.
func (p *place) index(n int) (int, error) {
	i, err := strconv.Atoi(p.key)
	if err != nil {
		return 0, err
	}
	at := i
	if at < 0 {
		at += n
	}
	if at < 0 || at >= n {
		return 0, fmt.Errorf("Unable to access invalid index: %d: %w", i, jsonpatch.ErrInvalidIndex)
	}
	return at, nil
}

func (p *place) set(value any) error {
	if err := p.e.measure(value, p.depth); err != nil {
		return err
	}
	return p.store(value)
}

func (p *place) store(value any) error {
	if p.put == nil {
		p.fields[p.key] = value
		return nil
	}
	i, err := p.index(len(p.list))
	if err != nil {
		return err
	}
	p.list[i] = value
	return nil
}

func (p *place) add(value any) error {
	if p.put == nil {
		return p.set(value)
	}
	if err := p.e.measure(value, p.depth); err != nil {
		return err
	}
	if p.key == "-" {
		p.put(append(p.list, value))
		return nil
	}
	if _, err := strconv.Atoi(p.key); err != nil {
		return fmt.Errorf("value was not a proper array index: '%s': %w", p.key, err)
	}
	i, err := p.index(len(p.list) + 1)
	if err != nil {
		return err
	}
	p.put(slices.Insert(p.list, i, value))
	return p.e.spend(len(p.list) - i)
}

func (p *place) remove() error {
	if p.put == nil {
		if _, ok := p.fields[p.key]; !ok {
			return fmt.Errorf("Unable to remove nonexistent key: %s: %w", p.key, jsonpatch.ErrMissing)
		}
		delete(p.fields, p.key)
		return nil
	}
	i, err := p.index(len(p.list))
	if err != nil {
		return err
	}
	p.put(slices.Delete(p.list, i, i+1))
	return p.e.spend(len(p.list) - i)
}

func (e *editor) spend(work int) error {
	if e.work += work; e.work > maxPatchWork {
		return errTooMuchWork
	}
	return nil
}

// measure refuses a value that would be nested too deep at its place.
func (e *editor) measure(v any, depth int) error {
	if depth > MaxNesting {
		return ErrTooDeep
	}
	if err := e.spend(1); err != nil {
		return err
	}
	switch v := v.(type) {
	case map[string]any:
		for _, member := range v {
			if err := e.measure(member, depth+1); err != nil {
				return err
			}
		}
	case []any:
		for _, member := range v {
			if err := e.measure(member, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// equal compares values; numbers are equal when they are written alike.
func equal(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for name, value := range a {
			other, ok := b[name]
			if !ok || !equal(value, other) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	}
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return a == b
}
