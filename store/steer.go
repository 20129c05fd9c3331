package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// steer keeps a route to the leader, whoever that is, until ctx ends. Ready is
// closed when the first one has brought memory up to date.
func (s *Store) steer(ctx context.Context) error {
	patience := time.AfterFunc(s.cfg.tuning.leaderWait, s.giveUp)
	defer patience.Stop()
	defer s.seeking.Wait()
	retry, lost := newBackoff(), time.Now()
	for ctx.Err() == nil {
		elected := s.elected.wait()
		reign, changed := s.leadership.now()
		var err error
		if reign != nil {
			var noting sync.WaitGroup
			noting.Go(s.noteAddress)
			s.travel(ctx, s.ownRoute(reign), patience)
			noting.Wait()
			retry.reset()
			lost = time.Now()
			continue
		}
		var l *link
		if l, err = s.seekLeader(ctx, elected, changed, time.Since(lost)); l != nil {
			err = s.useLink(ctx, l, patience)
			retry.reset()
			lost = time.Now()
		}
		if errors.Is(err, ErrRemoved) || errors.Is(err, ErrSuperseded) || errors.Is(err, errOtherCluster) || errors.Is(err, errNameTaken) {
			return err
		}
		if err != nil {
			s.cfg.Logger.Debug("no way to the leader", "error", err)
		}
		select {
		case <-changed:
		case <-elected:
		case <-retry.after():
		case <-ctx.Done():
		}
	}
	return nil
}

// noteAddress tells the group where its leader is, should that have moved. Others
// tell the leader when they connect.
func (s *Store) noteAddress() {
	own := raft.ServerAddress(s.peers.Addr().String())
	for _, server := range s.configuration().Servers {
		if server.ID != s.id || server.Address == own {
			continue
		}
		if err := s.reconfigured(s.raft.AddVoter(s.id, own, 0, memberTimeout)); err != nil && !errors.Is(err, ErrNotLeader) {
			s.cfg.Logger.Warn("the group does not know this server's new address", "address", own, "error", err)
		}
	}
}

func (s *Store) giveUp() {
	s.proposals.giveUp()
	s.routed.tell()
}

// travel uses a route until it is over.
func (s *Store) travel(ctx context.Context, r *route, patience *time.Timer) {
	s.proposals.settleBefore(r.term)
	patience.Stop()
	s.proposals.open(r)
	s.routed.tell()
	s.readyOnce.Do(func() { s.space.starting.Store(false); close(s.ready) })
	select {
	case <-r.over:
	case <-ctx.Done():
	}
	s.proposals.shut()
	s.routed.tell()
	patience.Reset(s.cfg.tuning.leaderWait)
}

// ownRoute leads to this server's own Raft.
func (s *Store) ownRoute(r *reign) *route {
	return &route{
		term: r.term, over: r.over,
		propose: func(b *batch) {
			s.proposals.futures <- proposedBatch{b, s.raft.Apply(b.data, 0)}
		},
		read:   func() (uint64, error) { return s.readIndex(r) },
		member: func(q memberRequest) (memberAnswer, error) { return s.changeMembers(r, q), nil },
	}
}

// observe tells steer of each new leader that Raft hears of.
func (s *Store) observe(ctx context.Context) error {
	seen := make(chan raft.Observation, 16)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	for {
		s.elected.tell()
		select {
		case <-seen:
		case <-ctx.Done():
			return nil
		}
	}
}

// seekLeader connects to the leader, asking other members for it when Raft does
// not know: it may not reach this server, whose address has changed, or which
// was removed. An election under way is left alone. It gives up as soon as Raft
// hears of another leader: the first may hang.
func (s *Store) seekLeader(ctx context.Context, elected, changed <-chan struct{}, leaderless time.Duration) (*link, error) {
	address, id := s.raft.LeaderWithID()
	var addresses []raft.ServerAddress
	switch {
	case id == s.id && address != "":
		return nil, nil // the reign begins in a moment
	case address != "":
		addresses = []raft.ServerAddress{address}
	case leaderless > electionTime || s.isNew():
		addresses = s.othersAddresses()
	}
	found := make(chan greeting, len(addresses))
	for _, address := range addresses {
		s.seeking.Go(func() {
			l, err := s.connect(ctx, address)
			found <- greeting{l, err}
		})
	}
	var errs []error
	for left := len(addresses); left > 0; left-- {
		select {
		case g := <-found:
			if g.link != nil {
				s.seeking.Go(func() { dropGreetings(found, left-1) })
				return g.link, nil
			}
			errs = append(errs, g.err)
		case <-elected:
			s.seeking.Go(func() { dropGreetings(found, left) })
			return nil, nil
		case <-changed:
			s.seeking.Go(func() { dropGreetings(found, left) })
			return nil, nil
		}
	}
	return nil, errors.Join(errs...)
}

// electionTime is what an election may take before others are asked for help.
const electionTime = 2 * time.Second

// greeting is what came of connecting to one server.
type greeting struct {
	link *link
	err  error
}

// dropGreetings ends connections that nobody waits for any more.
func dropGreetings(found <-chan greeting, n int) {
	for range n {
		if g := <-found; g.link != nil {
			g.link.end()
		}
	}
}

// othersAddresses are those of the members and, for a new server, of those that
// may let it in.
func (s *Store) othersAddresses() []raft.ServerAddress {
	var addresses []raft.ServerAddress
	for _, server := range s.configuration().Servers {
		if server.ID != s.id {
			addresses = append(addresses, server.Address)
		}
	}
	if s.isNew() {
		for _, address := range s.cfg.Join {
			addresses = append(addresses, raft.ServerAddress(address))
		}
	}
	return addresses
}

// backoff paces attempts to reach a leader.
type backoff struct{ next time.Duration }

const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
)

func newBackoff() *backoff { return &backoff{firstRetry} }
func (b *backoff) reset()  { b.next = firstRetry }
func (b *backoff) after() <-chan time.Time {
	d := b.next
	b.next = min(2*b.next, lastRetry)
	return time.After(d)
}
