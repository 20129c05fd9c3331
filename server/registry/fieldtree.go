package registry

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// fieldTree is a set of field paths in the shape of FieldsV1: names are path
// elements as they stand there ("f:spec", `k:{"name":"main"}`). A nil tree is
// the empty set. Trees are immutable once built, so operations share branches.
type fieldTree struct {
	member bool // the path to here is itself in the set
	kids   []fieldBranch
}

// fieldBranch is what lies below one path element.
type fieldBranch struct {
	name string
	tree *fieldTree
}

// leafField is the tree of a single path that ends here.
var leafField = &fieldTree{member: true}

// add appends a branch; callers keep names in order.
func (t *fieldTree) add(name string, kid *fieldTree) {
	if t.kids == nil {
		t.kids = make([]fieldBranch, 0, 4)
	}
	t.kids = append(t.kids, fieldBranch{name, kid})
}

// kid finds a branch, nil when there is none.
func (t *fieldTree) kid(name string) *fieldTree {
	i, ok := slices.BinarySearchFunc(t.kids, name, func(b fieldBranch, name string) int { return strings.Compare(b.name, name) })
	if ok {
		return t.kids[i].tree
	}
	return nil
}

// orNil gives nil for a tree without any path.
func (t *fieldTree) orNil() *fieldTree {
	if t == nil || !t.member && len(t.kids) == 0 {
		return nil
	}
	return t
}

// without gives the paths of t that are not in other, t itself when none is.
func (t *fieldTree) without(other *fieldTree) *fieldTree {
	if t == nil || other == nil {
		return t
	}
	out := &fieldTree{member: t.member && !other.member}
	same := out.member == t.member
	for _, b := range t.kids {
		left := b.tree.without(other.kid(b.name))
		same = same && left == b.tree
		if left != nil {
			out.add(b.name, left)
		}
	}
	if same {
		return t
	}
	return out.orNil()
}

// union gives the paths of both.
func (t *fieldTree) union(other *fieldTree) *fieldTree {
	if t == nil {
		return other
	}
	if other == nil {
		return t
	}
	out := &fieldTree{member: t.member || other.member}
	a, b := t.kids, other.kids
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0].name, b[0].name); {
		case c < 0:
			out.kids, a = append(out.kids, a[0]), a[1:]
		case c > 0:
			out.kids, b = append(out.kids, b[0]), b[1:]
		default:
			out.add(a[0].name, a[0].tree.union(b[0].tree))
			a, b = a[1:], b[1:]
		}
	}
	out.kids = append(append(out.kids, a...), b...)
	return out
}

// drop gives t without a whole top branch.
func (t *fieldTree) drop(name string) *fieldTree {
	if t == nil || t.kid(name) == nil {
		return t
	}
	out := &fieldTree{member: t.member}
	for _, b := range t.kids {
		if b.name != name {
			out.kids = append(out.kids, b)
		}
	}
	return out.orNil()
}

// appendJSON writes t as FieldsV1.
func (t *fieldTree) appendJSON(b []byte) []byte {
	b = append(b, '{')
	if t.member && len(t.kids) > 0 {
		b = append(b, `".":{}`...)
	}
	for _, kid := range t.kids {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(appendJSONString(b, kid.name), ':')
		b = kid.tree.appendJSON(b)
	}
	return append(b, '}')
}

// appendJSONString quotes s as structured-merge-diff does: nothing but quotes,
// backslashes and control characters is escaped.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[start:]...), '"')
}

var errFieldsV1 = errors.New("registry: not FieldsV1")

// parseFieldsV1 reads FieldsV1; the tree shares s.
func parseFieldsV1(s string) (*fieldTree, error) {
	p := fieldParser{s}
	t, err := p.object(false, 0)
	if err != nil || p.rest != "" {
		return nil, errFieldsV1
	}
	return t.orNil(), nil
}

// fieldParser reads the subset of JSON that FieldsV1 is: objects of objects.
type fieldParser struct{ rest string }

const maxFieldDepth = 100

func (p *fieldParser) object(inner bool, depth int) (*fieldTree, error) {
	if !p.take('{') || depth > maxFieldDepth {
		return nil, errFieldsV1
	}
	t := &fieldTree{}
	if p.take('}') {
		if inner {
			return leafField, nil
		}
		return t, nil
	}
	for {
		name, err := p.name()
		if err != nil || !p.take(':') {
			return nil, errFieldsV1
		}
		kid, err := p.object(true, depth+1)
		if err != nil {
			return nil, err
		}
		if name == "." {
			t.member = true
		} else {
			t.add(name, kid)
		}
		if p.take('}') {
			return t, t.sort()
		}
		if !p.take(',') {
			return nil, errFieldsV1
		}
	}
}

func (p *fieldParser) take(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *fieldParser) name() (string, error) {
	if p.rest == "" || p.rest[0] != '"' {
		return "", errFieldsV1
	}
	for i := 1; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '\\':
			return p.escapedName()
		case '"':
			name := p.rest[1:i]
			p.rest = p.rest[i+1:]
			return name, nil
		}
	}
	return "", errFieldsV1
}

// escapedName reads a name with escapes. JSON's \/ is unknown to Go, but nothing
// writes it here.
func (p *fieldParser) escapedName() (string, error) {
	quoted, err := strconv.QuotedPrefix(p.rest)
	if err != nil {
		return "", errFieldsV1
	}
	p.rest = p.rest[len(quoted):]
	return strconv.Unquote(quoted)
}

// sort puts the branches in order (list keys with numbers are written in
// another one) and refuses repeated names.
func (t *fieldTree) sort() error {
	slices.SortFunc(t.kids, func(a, b fieldBranch) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(t.kids); i++ {
		if t.kids[i].name == t.kids[i-1].name {
			return errFieldsV1
		}
	}
	return nil
}
