package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// groupName tells clusters apart, and a cluster from what it was before it was
// recovered. As text it is id/number, after a recovery id/number-branch.
type groupName struct {
	id     string // "": none yet
	number uint32 // rises with each recovery
	// branch is drawn with each recovery: when two servers were recovered, each by
	// itself, their clusters are strangers to each other.
	branch uint32
}

func (g groupName) String() string {
	switch {
	case g.id == "":
		return ""
	case g.branch == 0:
		return fmt.Sprintf("%s/%d", g.id, g.number)
	}
	return fmt.Sprintf("%s/%d-%d", g.id, g.number, g.branch)
}

func parseGroup(text string) (groupName, error) {
	if text == "" {
		return groupName{}, nil
	}
	bad := fmt.Errorf("%q is no name of a group", text)
	id, rest, ok := strings.Cut(text, "/")
	number, branch, recovered := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || id == "" || err != nil {
		return groupName{}, bad
	}
	g := groupName{id: id, number: uint32(n)}
	if recovered {
		b, err := strconv.ParseUint(branch, 10, 32)
		if err != nil || b == 0 {
			return groupName{}, bad
		}
		g.branch = uint32(b)
	}
	return g, nil
}

// supersedes tells whether g is what other became by a recovery.
func (g groupName) supersedes(other groupName) bool {
	return g.id != "" && g.id == other.id && g.number > other.number
}

// successor is the group after a recovery.
func (g groupName) successor() groupName {
	if g.id == "" {
		g = newGroup()
	}
	return groupName{id: g.id, number: g.number + 1, branch: uint32(randomID()>>32) | 1}
}

var keyGroup = []byte("orch/group")

// readGroup gives the group that this server belongs to, if any.
func (s *Store) readGroup() error {
	text, err := s.log.Get(keyGroup)
	if errors.Is(err, errNotFound) {
		return nil
	}
	var g groupName
	if err == nil {
		g, err = parseGroup(string(text))
	}
	s.group.Store(&g)
	return err
}

// groupNow is the group of this server, the zero name before it has one.
func (s *Store) groupNow() groupName {
	if g := s.group.Load(); g != nil {
		return *g
	}
	return groupName{}
}

// enterGroup remembers the group for good.
func (s *Store) enterGroup(name string) error {
	g, err := parseGroup(name)
	if err == nil {
		err = s.log.set(keyGroup, []byte(name))
	}
	if err == nil {
		s.group.Store(&g)
	}
	return err
}

func newGroup() groupName { return groupName{id: fmt.Sprintf("%016x", randomID()), number: 1} }
