package store

import (
	"context"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// proposer gathers concurrent Updates into proposals and follows each until its
// outcome is known. While one is being written to disk, the next ones gather,
// so the busier the store the fewer fsyncs each write costs.
//
// A proposal is decided when it is applied here, wherever it was proposed. One
// that is refused goes back into the queue. One of which nothing is heard, since
// the leader was lost, stays in doubt until this server has applied all that
// preceded a later reign: what has not been applied by then never will be.
type proposer struct {
	origin uint64

	mu       sync.Mutex
	queue    []*update         // guarded by mu
	closed   error             // why no more is taken now; guarded by mu
	stopped  bool              // closed is final; guarded by mu
	route    *route            // to the leader, nil while there is none; guarded by mu
	sequence uint64            // of the newest proposal; guarded by mu
	inFlight map[uint64]*batch // proposals whose outcome is open, by sequence; guarded by mu

	wake    chan struct{}      // has a token when run may have something to do
	futures chan proposedBatch // those proposed to this server's Raft, for their errors
}

type proposedBatch struct {
	*batch
	future raft.ApplyFuture
}

// route is the way to the leader of one reign: this server's own Raft or a link.
type route struct {
	term    uint64
	propose func(b *batch)
	read    func() (uint64, error) // the index that a reader must have applied
	member  func(memberRequest) (memberAnswer, error)
	over    <-chan struct{} // closed when the route is of no more use
}

const (
	// proposalsInFlight: one being written and one being applied.
	proposalsInFlight = 2
	// maxProposal bounds the bytes of a proposal, unless one Update is larger.
	maxProposal = 1 << 20
)

func newProposer(origin uint64) *proposer {
	return &proposer{
		origin:   origin,
		inFlight: make(map[uint64]*batch),
		wake:     make(chan struct{}, 1),
		futures:  make(chan proposedBatch, 2*proposalsInFlight),
	}
}

// add queues an update, or says why it cannot happen.
func (p *proposer) add(u *update) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil {
		return p.closed
	}
	p.queue = append(p.queue, u)
	signal(p.wake)
	return nil
}

// run proposes what is queued until ctx ends. It closes futures on return.
func (p *proposer) run(ctx context.Context) error {
	defer close(p.futures)
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil
		}
		for {
			b, r := p.next()
			if b == nil {
				break
			}
			r.propose(b)
		}
	}
}

// next takes as many updates as fit into one proposal; nil: nothing to do now.
func (p *proposer) next() (*batch, *route) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.route == nil || len(p.inFlight) >= proposalsInFlight {
		return nil, nil
	}
	b := &batch{sequence: p.sequence + 1, term: p.route.term}
	n, size := 0, proposalHeaderSize
	for ; n < len(p.queue) && (len(b.waiting) == 0 || size < maxProposal); n++ {
		u := p.queue[n]
		switch {
		case u.abandoned.Load():
			u.finish(ErrUnknownOutcome) // nobody is told
		case u.reign != nil && u.reign.term != b.term:
			u.finish(ErrNotLeader)
		default:
			size += updateSize(u.ops)
			b.waiting = append(b.waiting, u)
		}
	}
	// What stays is copied: the array must not keep finished updates in memory.
	p.queue = slices.Clone(p.queue[n:])
	if len(b.waiting) == 0 {
		return nil, nil
	}
	p.sequence++
	p.inFlight[b.sequence] = b
	b.data = p.encode(b, size)
	return b, p.route
}

func (p *proposer) encode(b *batch, size int) []byte {
	data := appendProposalHeader(make([]byte, 0, size), b.term, p.origin, b.sequence, len(b.waiting))
	for _, u := range b.waiting {
		data = appendUpdate(data, u.ops)
	}
	return data
}

// take gives a proposal of this process to the one who decides its outcome;
// nil: it is not ours, or decided.
func (p *proposer) take(origin, sequence uint64) *batch {
	if origin != p.origin {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.inFlight[sequence]
	if b != nil {
		delete(p.inFlight, sequence)
		signal(p.wake)
	}
	return b
}

// refuse puts the updates of a proposal that will never count back into the
// queue.
func (p *proposer) refuse(origin, sequence uint64) {
	if b := p.take(origin, sequence); b != nil {
		p.requeue(b)
	}
}

func (p *proposer) requeue(batches ...*batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range slices.Backward(batches) {
		if p.closed != nil {
			b.finish(p.closed)
			continue
		}
		p.queue = append(b.waiting, p.queue...)
	}
	signal(p.wake)
}

// inDoubt gives the proposals without outcome, oldest first.
func (p *proposer) inDoubt() []*batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	batches := make([]*batch, 0, len(p.inFlight))
	for _, b := range p.inFlight {
		batches = append(batches, b)
	}
	slices.SortFunc(batches, func(a, b *batch) int { return int(a.sequence) - int(b.sequence) })
	return batches
}

// settleBefore puts back what was proposed in earlier terms. All that preceded
// the reign of term has been applied here.
func (p *proposer) settleBefore(term uint64) {
	for _, b := range p.inDoubt() {
		if b.term < term {
			p.refuse(p.origin, b.sequence)
		}
	}
}

// lose fails what is in flight: whether it happened cannot be told any more.
func (p *proposer) lose(err error) {
	for _, b := range p.inDoubt() {
		if b := p.take(p.origin, b.sequence); b != nil {
			b.finish(err)
		}
	}
}

// open lets proposals go to the leader by r.
func (p *proposer) open(r *route) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.route = r
	if !p.stopped {
		p.closed = nil
	}
	signal(p.wake)
}

// shut holds proposals back until there is a route again.
func (p *proposer) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.route = nil
}

// close refuses further updates because of err, for good when final, and fails
// those still queued.
func (p *proposer) close(err error, final bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	p.closed, p.stopped = err, final
	for _, u := range p.queue {
		u.finish(err)
	}
	p.queue = nil
}

// settle sees to the proposals that this server's Raft did not take. Those it
// took are finished by the fsm; those in doubt by settleBefore.
func (p *proposer) settle(down <-chan struct{}) error {
	for b := range p.futures {
		if err := outcome(b.future, down); err != nil && refused(err) {
			p.refuse(p.origin, b.sequence)
		}
	}
	return nil
}

// current gives the route in use, nil while there is none, and why there will
// be none soon.
func (p *proposer) current() (*route, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil || p.route == nil {
		return nil, p.closed
	}
	select {
	case <-p.route.over:
		return nil, nil
	default:
		return p.route, nil
	}
}

// giveUp fails all that waits for a leader, unless there is one.
func (p *proposer) giveUp() {
	p.mu.Lock()
	alone := p.route == nil
	p.mu.Unlock()
	if alone {
		p.close(ErrNotLeader, false)
		p.lose(ErrUnknownOutcome)
	}
}
