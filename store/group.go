package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// groupName tells clusters apart, and a cluster from what it was before it was
// recovered.
type groupName struct {
	id     string // "": none yet
	number uint64 // rises with each recovery
}

func (g groupName) String() string {
	if g.id == "" {
		return ""
	}
	return g.id + "/" + strconv.FormatUint(g.number, 10)
}

func parseGroup(text string) (groupName, error) {
	if text == "" {
		return groupName{}, nil
	}
	id, number, ok := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || id == "" || err != nil {
		return groupName{}, fmt.Errorf("%q is no name of a group", text)
	}
	return groupName{id, n}, nil
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
