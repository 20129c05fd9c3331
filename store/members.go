package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Member is a server of the group.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"` // false: a learner
	Leader  bool   `json:"leader"`
	Alive   bool   `json:"alive"` // connected to the leader
}

// Members asks the leader who belongs to the group.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	a, err := s.askMember(ctx, memberRequest{Op: memberList})
	return a.Members, err
}

// RemoveMember takes the server of that name, or ID, out of the group.
func (s *Store) RemoveMember(ctx context.Context, name string) error {
	_, err := s.askMember(ctx, memberRequest{Op: memberRemove, Name: name})
	return err
}

// PromoteMember gives a learner its vote before it asks for it itself, which it
// does when it has caught up.
func (s *Store) PromoteMember(ctx context.Context, name string) error {
	_, err := s.askMember(ctx, memberRequest{Op: memberPromote, Name: name})
	return err
}

// Resign hands the leadership to another server, if this one has it and there is
// another with a vote. A server that is about to stop spares the others the wait
// for an election.
func (s *Store) Resign() {
	if !s.IsLeader() || s.alone() {
		return
	}
	over, end := context.WithTimeout(context.Background(), resignTimeout)
	defer end()
	if err := outcome(s.raft.LeadershipTransfer(), over.Done()); err != nil {
		s.cfg.Logger.Debug("leadership not handed over", "error", err)
	}
}

// resignTimeout is how long a server waits for another to take over: the others
// elect one even without being asked.
const resignTimeout = time.Second

// ErrNoMember says that no member has the name.
var ErrNoMember = errors.New("there is no such server in the cluster")

// ErrMember says that a change of the members is not possible.
var ErrMember = errors.New("cannot change the servers of the cluster")

// memberRequest is a question to the leader about the members.
type memberRequest struct {
	Op      string `json:"op"`
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"` // of the server, or its ID
	Address string `json:"address,omitempty"`
}

const (
	memberList    = "list"
	memberAdd     = "add"
	memberPromote = "promote"
	memberRemove  = "remove"
)

type memberAnswer struct {
	Members []Member `json:"members,omitempty"`
	Code    string   `json:"code,omitempty"`
	Message string   `json:"message,omitempty"` // "": done
}

// codes of the errors that others must be able to tell apart.
var memberCodes = map[string]error{"name": errNameTaken, "none": ErrNoMember, "member": ErrMember, "leader": ErrNotLeader}

func answerOf(err error) memberAnswer {
	if err == nil {
		return memberAnswer{}
	}
	a := memberAnswer{Message: err.Error()}
	for code, sentinel := range memberCodes {
		if errors.Is(err, sentinel) {
			a.Code = code
		}
	}
	return a
}

// err is the error that the leader answered with.
func (a memberAnswer) err() error {
	switch sentinel := memberCodes[a.Code]; {
	case a.Message == "":
		return nil
	case sentinel == nil:
		return errors.New(a.Message)
	default:
		return &memberError{a.Message, sentinel}
	}
}

type memberError struct {
	message  string
	sentinel error
}

func (e *memberError) Error() string { return e.message }
func (e *memberError) Unwrap() error { return e.sentinel }

func (s *Store) askMember(ctx context.Context, q memberRequest) (memberAnswer, error) {
	for {
		changed := s.routed.wait()
		r, err := s.proposals.current()
		if err != nil {
			return memberAnswer{}, err
		}
		if r != nil {
			a, err := r.member(q)
			if err == nil {
				err = a.err()
			}
			return a, err
		}
		select {
		case <-changed:
		case <-s.memory.closed:
			return memberAnswer{}, s.unavailable()
		case <-ctx.Done():
			return memberAnswer{}, context.Cause(ctx)
		}
	}
}

// memberTimeout bounds one change of the configuration.
const memberTimeout = 10 * time.Second

// changeMembers is the leader's answer.
func (s *Store) changeMembers(r *reign, q memberRequest) memberAnswer {
	switch q.Op {
	case memberList:
		return memberAnswer{Members: s.members(r)}
	case memberAdd:
		return answerOf(s.addMember(r, q))
	case memberPromote, memberRemove:
		server, ok := s.findMember(q)
		if !ok {
			return answerOf(fmt.Errorf("%w: %s", ErrNoMember, q.Name))
		}
		if q.Op == memberPromote {
			return answerOf(s.promote(server))
		}
		return answerOf(s.remove(server))
	}
	return answerOf(fmt.Errorf("%w: %q is not known here", ErrMember, q.Op))
}

func (s *Store) members(r *reign) []Member {
	linked := r.linked()
	var members []Member
	for _, server := range s.configuration().Servers {
		own := server.ID == s.id
		members = append(members, Member{
			ID: string(server.ID), Name: nameOf(server.ID), Address: string(server.Address),
			Voter: server.Suffrage == raft.Voter, Leader: own, Alive: own || linked[server.ID],
		})
	}
	return members
}

func (s *Store) findMember(q memberRequest) (raft.Server, bool) {
	for _, server := range s.configuration().Servers {
		if string(server.ID) == q.ID || q.Name != "" && (nameOf(server.ID) == q.Name || string(server.ID) == q.Name) {
			return server, true
		}
	}
	return raft.Server{}, false
}

// addMember lets a server in as a learner, or notes its new address. A dead
// server of the same name gives way: its machine was installed anew.
func (s *Store) addMember(r *reign, q memberRequest) error {
	id, address := raft.ServerID(q.ID), raft.ServerAddress(q.Address)
	for _, server := range s.configuration().Servers {
		switch {
		case server.ID == id && server.Suffrage == raft.Voter:
			return s.reconfigured(s.raft.AddVoter(id, address, 0, memberTimeout))
		case server.ID == id:
		case nameOf(server.ID) != q.Name:
		case server.ID == s.id || r.linked()[server.ID]:
			return fmt.Errorf("%w: %s at %s (choose another --node-name for the new one, or stop that one)", errNameTaken, q.Name, server.Address)
		default:
			if err := s.remove(server); err != nil {
				return err
			}
		}
	}
	return s.reconfigured(s.raft.AddNonvoter(id, address, 0, memberTimeout))
}

func (s *Store) promote(server raft.Server) error {
	if server.Suffrage == raft.Voter {
		return nil
	}
	return s.reconfigured(s.raft.AddVoter(server.ID, server.Address, 0, memberTimeout))
}

func (s *Store) remove(server raft.Server) error {
	if server.Suffrage == raft.Voter && s.alone() {
		return fmt.Errorf("%w: %s is the only one with a vote", ErrMember, nameOf(server.ID))
	}
	return s.reconfigured(s.raft.RemoveServer(server.ID, 0, memberTimeout))
}

func (s *Store) reconfigured(future raft.IndexFuture) error {
	err := outcome(future, s.down)
	s.linked.tell()
	if err != nil && refused(err) {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}

// MembersChanged gives a channel that is closed when members came, went, or lost
// their connection to the leader. It is for the leader.
func (s *Store) MembersChanged() <-chan struct{} { return s.linked.wait() }

// configuration is the newest one that Raft knows.
func (s *Store) configuration() raft.Configuration {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return raft.Configuration{}
	}
	return future.Configuration()
}

// A server's ID is its name and a random number, which makes a server that was
// installed anew another one.

func newServerID(name string) raft.ServerID {
	return raft.ServerID(fmt.Sprintf("%s.%016x", name, randomID()))
}

func nameOf(id raft.ServerID) string {
	if i := strings.LastIndexByte(string(id), '.'); i > 0 {
		return string(id[:i])
	}
	return string(id)
}
