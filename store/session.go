package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

// session is what the leader knows of one other server during a reign.
type session struct {
	serving sync.Mutex // one connection is served at a time; held by its goroutines' owner

	mu       sync.Mutex
	wire     *wire         // the newest connection, nil when it ended; guarded by mu
	id       raft.ServerID // guarded by mu
	sequence uint64        // of the newest proposal taken; guarded by mu
	refused  []uint64      // proposals that did not reach the log; guarded by mu
}

// servePeers serves the connections of other servers until ctx ends.
func (s *Store) servePeers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.peers.Close() })
	defer stop()
	for {
		conn, err := s.peers.Accept()
		if err != nil {
			break // closed
		}
		group.Go(func() error {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			if err := s.servePeer(ctx, newWire(conn)); err != nil {
				s.cfg.Logger.Debug("connection of another server ended", "error", err)
			}
			return nil
		})
	}
	<-ctx.Done()
	return group.Wait()
}

func (s *Store) servePeer(ctx context.Context, w *wire) error {
	if err := w.SetReadDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	kind, payload, err := w.read()
	if err != nil {
		return err
	}
	var h hello
	if err := json.Unmarshal(payload, &h); kind != frameHello || err != nil {
		return fmt.Errorf("greets with frame %d: %w", kind, err)
	}
	if err := w.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	answer := s.welcome(h)
	reign := s.reignSoon(ctx)
	if theirs, err := parseGroup(h.Group); reign == nil || answer.Removed || err != nil || theirs.id != "" && theirs != s.groupNow() {
		return w.writeWelcome(answer)
	}
	return s.serveSession(ctx, reign, w, h, answer)
}

// reignSoon is the reign; one that Raft has begun is waited for.
func (s *Store) reignSoon(ctx context.Context) *reign {
	for {
		r, changed := s.leadership.now()
		if r != nil || s.raft.State() != raft.Leader {
			return r
		}
		select {
		case <-changed:
		case <-time.After(greetTimeout / 2):
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *wire) writeWelcome(answer welcome) error {
	data, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return w.write(frameWelcome, data)
}

// welcome is what any server answers.
func (s *Store) welcome(h hello) welcome {
	answer := welcome{Group: s.groupNow().String(), ID: string(s.id), At: s.peers.Addr().String()}
	leader, _ := s.raft.LeaderWithID()
	answer.Leader = string(leader)
	for _, server := range s.configuration().Servers {
		if string(server.ID) == h.ID {
			answer.Member, answer.Voter, answer.Address = true, server.Suffrage == raft.Voter, string(server.Address)
		}
	}
	// Only a leader's word counts: this server may not have heard of the other yet.
	answer.Removed = !answer.Member && !h.New && s.IsLeader()
	return answer
}

func (r *reign) session(origin uint64) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[origin] == nil {
		r.sessions[origin] = &session{}
	}
	return r.sessions[origin]
}

// linked tells which servers have a connection to this leader, and answer on it.
func (r *reign) linked() map[raft.ServerID]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	linked := make(map[raft.ServerID]bool)
	for _, n := range r.sessions {
		n.mu.Lock()
		if n.wire != nil && !r.pulses[n.id].silent {
			linked[n.id] = true
		}
		n.mu.Unlock()
	}
	return linked
}

// attach makes w the session's connection; the one before has ended for good
// when attach returns. It gives what to tell the other server.
func (n *session) attach(w *wire, id raft.ServerID) (sequence uint64, refused []uint64) {
	n.mu.Lock()
	if n.wire != nil {
		n.wire.Close()
	}
	n.mu.Unlock()
	n.serving.Lock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wire, n.id = w, id
	return n.sequence, n.refused
}

func (n *session) detach() {
	n.mu.Lock()
	n.wire = nil
	n.mu.Unlock()
	n.serving.Unlock()
}

// serveSession serves the other server's connection until it or the reign ends.
func (s *Store) serveSession(ctx context.Context, r *reign, w *wire, h hello, answer welcome) error {
	n := r.session(h.Origin)
	sequence, refused := n.attach(w, raft.ServerID(h.ID))
	s.linked.tell()
	defer s.linked.tell()
	defer n.detach()
	answer.Term, answer.Sequence = r.term, sequence
	if err := w.writeWelcome(answer); err != nil {
		return err
	}
	for _, sequence := range refused {
		if err := w.writeNumbers(frameRefused, nil, sequence); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	futures := make(chan proposedFrame, 16)
	reads := make(chan uint64, 256)
	group.Go(func() error {
		select {
		case <-r.over:
		case <-ctx.Done():
		}
		return w.Close()
	})
	group.Go(func() error { return s.tellCommits(ctx, w) })
	group.Go(func() error { return s.tellRefused(n, w, futures) })
	group.Go(func() error { return s.answerReads(ctx, r, w, reads) })
	group.Go(func() error {
		defer close(futures)
		return s.takeFrames(ctx, group, r, n, w, futures, reads)
	})
	return group.Wait()
}

// takeFrames takes what the other server asks; it ends with an error.
func (s *Store) takeFrames(ctx context.Context, group *errgroup.Group, r *reign, n *session, w *wire, futures chan<- proposedFrame, reads chan<- uint64) error {
	for {
		kind, payload, err := w.read()
		if err != nil {
			return err
		}
		switch {
		case kind == framePropose:
			if err := s.proposeFor(r, n, payload, futures); err != nil {
				return err
			}
		case kind == frameRead && len(payload) == 8:
			select {
			case reads <- binary.LittleEndian.Uint64(payload):
			case <-ctx.Done():
				return ctx.Err()
			}
		case kind == frameMember && len(payload) > 8:
			group.Go(func() error { return s.answerMember(r, w, payload) })
		default:
			return fmt.Errorf("frame %d of %d bytes is not known", kind, len(payload))
		}
	}
}

// proposedFrame is another server's proposal on its way.
type proposedFrame struct {
	origin, sequence uint64
	future           raft.ApplyFuture
}

func (s *Store) proposeFor(r *reign, n *session, data []byte, futures chan<- proposedFrame) error {
	header, _, _, err := decodeProposalHeader(data)
	if err != nil || header.term != r.term {
		return fmt.Errorf("proposal for term %d in term %d: %w", header.term, r.term, err)
	}
	updates, err := s.fsm.decode(data)
	if err != nil {
		return err
	}
	s.fsm.decoded.put(header.origin, header.sequence, updates)
	n.mu.Lock()
	n.sequence = header.sequence
	n.mu.Unlock()
	futures <- proposedFrame{header.origin, header.sequence, s.raft.Apply(data, 0)}
	return nil
}

// tellRefused tells of proposals that did not reach the log. All others are
// decided by being applied, or by the end of the reign.
func (s *Store) tellRefused(n *session, w *wire, futures <-chan proposedFrame) error {
	for f := range futures {
		err := outcome(f.future, s.down)
		if err == nil {
			continue
		}
		s.fsm.decoded.take(f.origin, f.sequence)
		if !refused(err) {
			continue
		}
		n.mu.Lock()
		n.refused = append(n.refused, f.sequence)
		n.mu.Unlock()
		_ = w.writeNumbers(frameRefused, nil, f.sequence) // told again on the next connection
	}
	return nil
}

// tellCommits tells of each newly committed entry, so that others need not wait
// for Raft to say so.
func (s *Store) tellCommits(ctx context.Context, w *wire) error {
	var told position
	for {
		moved := s.fsm.progress.wait()
		if at := s.fsm.applied(); at != told {
			if err := w.writeNumbers(frameCommit, nil, at.index, at.term); err != nil {
				return err
			}
			told = at
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// answerReads answers questions for the read index. They take one another's
// turn in s.reads, so that one look around answers many servers.
func (s *Store) answerReads(ctx context.Context, r *reign, w *wire, reads <-chan uint64) error {
	for {
		select {
		case number := <-reads:
			index, err := s.reads.do(ctx, func() (uint64, error) { return s.readIndex(r) })
			if err == nil {
				err = w.writeNumbers(frameReadTo, nil, number, index)
			}
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Store) answerMember(r *reign, w *wire, payload []byte) error {
	var q memberRequest
	if err := json.Unmarshal(payload[8:], &q); err != nil {
		return err
	}
	data, err := json.Marshal(s.changeMembers(r, q))
	if err != nil {
		return err
	}
	return w.writeNumbers(frameMembered, data, binary.LittleEndian.Uint64(payload))
}
