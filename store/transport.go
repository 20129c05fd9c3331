package store

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// transport is Raft's network transport with a door at which this server tells
// its own Raft what the leader has committed: see hearCommit.
type transport struct {
	*raft.NetworkTransport
	rpcs  chan raft.RPC
	layer *groupLayer

	// stuck tells that this server's disk does not answer.
	stuck func() bool
	// heartbeat is told of each heartbeat when it is over.
	heartbeat func(term uint64, to raft.ServerID, began time.Time, answered bool)
}

// transportTimeout bounds dialling and each message between servers.
const transportTimeout = 3 * time.Second

func newTransport(layer *groupLayer, logger *raftLogger, stuck func() bool, heartbeat func(uint64, raft.ServerID, time.Time, bool)) *transport {
	return &transport{
		stuck: stuck, heartbeat: heartbeat,
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: layer, MaxPool: 3, Timeout: transportTimeout, Logger: logger,
			// One message at a time to each server: a pipeline of Raft's hangs for ever
			// when a leader is deposed while the pipeline is full.
			MaxRPCsInFlight: 1,
		}),
		rpcs: make(chan raft.RPC), layer: layer,
	}
}

var errStuck = errors.New("the disk of the leader does not answer")

// AppendEntries sends entries or, without any, a heartbeat. A leader whose disk
// hangs sends none: it can take no write, so another server must lead, and Raft
// itself would not notice.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if len(args.Entries) > 0 {
		return t.NetworkTransport.AppendEntries(id, target, args, resp)
	}
	began, err := time.Now(), errStuck
	if !t.stuck() {
		err = t.NetworkTransport.AppendEntries(id, target, args, resp)
	}
	t.heartbeat(args.Term, id, began, err == nil)
	return err
}

// Consumer gives the messages for this server's Raft.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// run passes messages on until ctx ends.
func (t *transport) run(ctx context.Context) error {
	for {
		select {
		case rpc := <-t.NetworkTransport.Consumer():
			if !t.pass(ctx, rpc) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (t *transport) pass(ctx context.Context, rpc raft.RPC) bool {
	select {
	case t.rpcs <- rpc:
		return true
	case <-ctx.Done():
		return false
	}
}

// hearCommit tells Raft, in the leader's name, that the entry of the given index
// and term is committed. Raft's leader says so itself only with the next entry,
// or after CommitTimeout; callers of this server would wait for that. It is the
// message that Raft would send, so Raft checks it like any other.
func (t *transport) hearCommit(ctx context.Context, leader raft.Server, reign uint64, index, term uint64) {
	address := t.EncodePeer(leader.ID, leader.Address)
	t.pass(ctx, raft.RPC{
		Command: &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.ID), Addr: address},
			Term:      reign, Leader: address, PrevLogEntry: index, PrevLogTerm: term, LeaderCommitIndex: index,
		},
		RespChan: make(chan raft.RPCResponse, 1),
	})
}

// nowhere is the layer of a server that no other can reach.
type nowhere struct {
	address address
	closed  chan struct{}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func (n nowhere) Accept() (net.Conn, error) { <-n.closed; return nil, net.ErrClosed }
func (n nowhere) Close() error              { close(n.closed); return nil }
func (n nowhere) Addr() net.Addr            { return n.address }

func (n nowhere) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, errors.New("this server has no way to others")
}
