package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// groupLayer lets Raft talk within one group only. Both ends of a connection
// name theirs first: Raft itself takes any leader's word, and after a recovery
// servers of the old group may still be about.
type groupLayer struct {
	raft.StreamLayer
	name func() groupName
	met  func(groupName) error // judges the other's group

	mu    sync.Mutex
	calls map[net.Conn]struct{} // connections that were dialled; nil when hung up; guarded by mu
}

func newGroupLayer(streams raft.StreamLayer, name func() groupName, met func(groupName) error) *groupLayer {
	return &groupLayer{StreamLayer: streams, name: name, met: met, calls: make(map[net.Conn]struct{})}
}

// hangUp ends all that was dialled: who waits for an answer of a slow server
// waits no longer.
func (l *groupLayer) hangUp() {
	l.mu.Lock()
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for conn := range calls {
		_ = conn.Close()
	}
}

// enter notes a connection, unless all have been hung up.
func (l *groupLayer) enter(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		return false
	}
	l.calls[conn] = struct{}{}
	return true
}

// dialledConn forgets itself when it is closed.
type dialledConn struct {
	net.Conn
	layer *groupLayer
}

func (c *dialledConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.calls, c.Conn)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// groupSize is the length of a group's name on the wire, filled up with spaces.
const groupSize = 40

func (g groupName) wire() []byte { return fmt.Appendf(nil, "%-*s", groupSize, g.String()) }

func readGroupName(r io.Reader) (groupName, error) {
	b := make([]byte, groupSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return groupName{}, err
	}
	return parseGroup(string(bytes.TrimRight(b, " ")))
}

// Dial connects and exchanges names.
func (l *groupLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	raw, err := l.StreamLayer.Dial(address, timeout)
	if err != nil {
		return nil, err
	}
	conn := &dialledConn{raw, l}
	if !l.enter(raw) {
		return nil, errors.Join(ErrClosed, conn.Close())
	}
	err = conn.SetDeadline(time.Now().Add(timeout))
	if err == nil {
		_, err = conn.Write(l.name().wire())
	}
	var theirs groupName
	if err == nil {
		theirs, err = readGroupName(conn)
	}
	if err == nil {
		err = errors.Join(l.met(theirs), conn.SetDeadline(time.Time{}))
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Accept gives a connection that exchanges names when it is first read from, so
// that a slow one holds up nobody.
func (l *groupLayer) Accept() (net.Conn, error) {
	conn, err := l.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	return &unnamedConn{Conn: conn, layer: l}, nil
}

type unnamedConn struct {
	net.Conn
	layer *groupLayer
	named bool // used by the reader alone
}

func (c *unnamedConn) Read(b []byte) (int, error) {
	if !c.named {
		theirs, err := readGroupName(c.Conn)
		if err == nil {
			_, err = c.Write(c.layer.name().wire())
		}
		if err == nil {
			err = c.layer.met(theirs)
		}
		if err != nil {
			return 0, err
		}
		c.named = true
	}
	return c.Conn.Read(b)
}

// meet judges the group of a server that Raft talks to.
func (s *Store) meet(theirs groupName) error {
	ours := s.groupNow()
	switch {
	case ours == theirs:
		return nil
	case theirs.supersedes(ours):
		s.fail(ErrSuperseded)
		return ErrSuperseded
	}
	return errOtherCluster
}
