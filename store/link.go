package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

// hello opens a connection between servers.
type hello struct {
	Group   string `json:"group"`  // "": not in any yet
	Origin  uint64 `json:"origin"` // of this run's proposals
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // where the others reach this server
	New     bool   `json:"new"`     // has never been a member
}

// welcome answers it.
type welcome struct {
	Group string `json:"group"`
	ID    string `json:"id"` // of the server that welcomes
	At    string `json:"at"` // its address, as the group knows it

	// Of a server that leads:
	Term     uint64 `json:"term,omitempty"`     // of its reign; 0: it does not lead
	Sequence uint64 `json:"sequence,omitempty"` // of the last proposal it took in this reign from the same origin
	Address  string `json:"address,omitempty"`  // of the other, as the group knows it
	Voter    bool   `json:"voter,omitempty"`
	Member   bool   `json:"member,omitempty"`
	Removed  bool   `json:"removed,omitempty"`

	// Of one that does not:
	Leader string `json:"leader,omitempty"` // where it is; "": not known either
}

var (
	errOtherCluster = errors.New("these servers belong to different clusters")
	errNameTaken    = errors.New("a server of that name is a member already")
	errLinkOver     = errors.New("the connection to the leader is over")
)

// link is a connection to the leader.
type link struct {
	*wire
	welcome welcome
	leader  raft.Server

	mu      sync.Mutex
	number  uint64                 // of the newest question; guarded by mu
	waiting map[uint64]chan []byte // for answers, by number; guarded by mu

	over chan struct{} // closed when the connection is of no more use
	once sync.Once
}

func (l *link) end() {
	l.once.Do(func() { close(l.over); l.Close() })
}

// greetTimeout bounds the exchange of hello and welcome.
const greetTimeout = 2 * time.Second

// connect greets the server at address and, when it only knows where the leader
// is, that one. nil without error: it knows of none.
func (s *Store) connect(ctx context.Context, address raft.ServerAddress) (*link, error) {
	for range 2 {
		l, err := s.greet(ctx, address)
		if err != nil {
			return nil, fmt.Errorf("server at %s: %w", address, err)
		}
		switch w := l.welcome; {
		case w.Term > 0:
			return l, nil
		default:
			l.end()
			if w.Leader == "" || w.Leader == string(address) {
				return nil, nil
			}
			address = raft.ServerAddress(w.Leader)
		}
	}
	return nil, nil
}

func (s *Store) greet(ctx context.Context, address raft.ServerAddress) (*link, error) {
	conn, err := s.peers.Dial(address, greetTimeout)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l := &link{wire: newWire(conn), waiting: make(map[uint64]chan []byte), over: make(chan struct{})}
	if err := l.introduce(s.hello()); err != nil {
		conn.Close()
		return nil, err
	}
	if err := s.judge(l.welcome); err != nil {
		conn.Close()
		return nil, err
	}
	l.leader = raft.Server{ID: raft.ServerID(l.welcome.ID), Address: raft.ServerAddress(l.welcome.At)}
	return l, nil
}

func (s *Store) hello() hello {
	return hello{
		Group: s.groupNow().String(), Origin: s.proposals.origin, ID: string(s.id), Name: s.cfg.Name,
		Address: s.peers.Addr().String(), New: s.isNew(),
	}
}

func (l *link) introduce(h hello) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := errors.Join(l.SetReadDeadline(time.Now().Add(greetTimeout)), l.write(frameHello, data)); err != nil {
		return err
	}
	kind, data, err := l.read()
	if err != nil {
		return err
	}
	if kind != frameWelcome {
		return fmt.Errorf("answers a greeting with frame %d", kind)
	}
	return errors.Join(json.Unmarshal(data, &l.welcome), l.SetReadDeadline(time.Time{}))
}

// judge tells whether this server and the one that welcomes it belong together.
func (s *Store) judge(w welcome) error {
	theirs, err := parseGroup(w.Group)
	switch ours := s.groupNow(); {
	case err != nil:
		return err
	case ours.id == "", ours == theirs, ours.supersedes(theirs):
	case theirs.supersedes(ours):
		return ErrSuperseded
	default:
		return errOtherCluster
	}
	if w.Removed {
		return ErrRemoved
	}
	return nil
}

// useLink makes l the route to the leader until it is over.
func (s *Store) useLink(ctx context.Context, l *link, patience *time.Timer) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { defer l.end(); return s.listen(ctx, l) })
	group.Go(func() error { defer l.end(); s.outlast(ctx, l); return nil })
	group.Go(func() error {
		defer l.end()
		if err := s.settleIn(ctx, l); err != nil {
			return err
		}
		s.travel(ctx, s.linkRoute(l), patience)
		return nil
	})
	return group.Wait()
}

// outlast ends the link when Raft turns to another leader, or loses this one.
func (s *Store) outlast(ctx context.Context, l *link) {
	known := false
	for {
		elected := s.elected.wait()
		_, changed := s.leadership.now()
		address, _ := s.raft.LeaderWithID()
		switch {
		case address == l.leader.Address:
			known = true
		case address != "" || known:
			return
		}
		// A leader that does not reach this server by Raft is not known to it yet.
		select {
		case <-elected:
		case <-changed:
		case <-l.over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// settleIn does what must precede proposals: this server becomes a member, the
// fate of earlier proposals is cleared up, and memory catches up.
func (s *Store) settleIn(ctx context.Context, l *link) error {
	if s.groupNow().id == "" {
		if err := s.enterGroup(l.welcome.Group); err != nil {
			return err
		}
	}
	own := s.peers.Addr().String()
	if !l.welcome.Member || l.welcome.Address != own {
		if err := l.changeMember(memberRequest{Op: memberAdd, ID: string(s.id), Name: s.cfg.Name, Address: own}); err != nil {
			return err
		}
	}
	for _, b := range s.proposals.inDoubt() {
		// The leader has put into its log what it took in this reign, and will never
		// see the rest: the connection that carried it is gone.
		if b.term == l.welcome.Term && b.sequence > l.welcome.Sequence {
			s.proposals.refuse(s.proposals.origin, b.sequence)
		}
	}
	index, err := l.readIndex()
	if err != nil {
		return err
	}
	if err := s.reach(ctx, index, l.over); err != nil {
		return err
	}
	if !l.welcome.Voter {
		return l.changeMember(memberRequest{Op: memberPromote, ID: string(s.id)})
	}
	return nil
}

func (s *Store) linkRoute(l *link) *route {
	return &route{
		term: l.welcome.Term, over: l.over, read: l.readIndex, member: l.member,
		propose: func(b *batch) {
			if l.write(framePropose, b.data) != nil {
				l.end()
			}
		},
	}
}

// listen takes what the leader sends until the link is over.
func (s *Store) listen(ctx context.Context, l *link) error {
	stop := context.AfterFunc(ctx, l.end)
	defer stop()
	for {
		kind, payload, err := l.read()
		if err != nil {
			return nil
		}
		switch {
		case kind == frameRefused && len(payload) == 8:
			s.proposals.refuse(s.proposals.origin, binary.LittleEndian.Uint64(payload))
		case kind == frameCommit && len(payload) == 16:
			at := position{binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint64(payload[8:])}
			s.commits.hear(l.leader, l.welcome.Term, at)
		case (kind == frameReadTo || kind == frameMembered) && len(payload) >= 8:
			l.answer(binary.LittleEndian.Uint64(payload), payload[8:])
		default:
			return fmt.Errorf("the leader sends a frame %d of %d bytes", kind, len(payload))
		}
	}
}

func (l *link) answer(number uint64, payload []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if waiting := l.waiting[number]; waiting != nil {
		waiting <- payload
		delete(l.waiting, number)
	}
}

// ask puts a question and waits for its answer.
func (l *link) ask(kind frameKind, rest []byte) ([]byte, error) {
	answer := make(chan []byte, 1)
	l.mu.Lock()
	l.number++
	number := l.number
	l.waiting[number] = answer
	l.mu.Unlock()
	if err := l.writeNumbers(kind, rest, number); err != nil {
		l.end()
		return nil, err
	}
	select {
	case payload := <-answer:
		return payload, nil
	case <-l.over:
		return nil, errLinkOver
	}
}

func (l *link) readIndex() (uint64, error) {
	payload, err := l.ask(frameRead, nil)
	if err != nil {
		return 0, err
	}
	if len(payload) != 8 {
		l.end()
		return 0, errMalformed
	}
	return binary.LittleEndian.Uint64(payload), nil
}

func (l *link) member(q memberRequest) (memberAnswer, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return memberAnswer{}, err
	}
	payload, err := l.ask(frameMember, data)
	if err != nil {
		return memberAnswer{}, err
	}
	var a memberAnswer
	err = json.Unmarshal(payload, &a)
	return a, err
}

func (l *link) changeMember(q memberRequest) error {
	a, err := l.member(q)
	if err != nil {
		return err
	}
	return a.err()
}
