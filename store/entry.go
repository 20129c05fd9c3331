package store

import "errors"

// Sentinel errors of reads and watches.
var (
	// ErrCompacted says that the revision asked for is older than the history kept.
	ErrCompacted = errors.New("store: revision has been compacted")
	// ErrFutureRevision says that the revision asked for has not happened yet.
	ErrFutureRevision = errors.New("store: revision is in the future")
)

// Sentinel errors of writes and of the store as a whole.
var (
	// ErrClosed says that the store, or the watcher, has stopped.
	ErrClosed = errors.New("store: closed")
	// ErrNotLeader says that no server leads the group as far as can be seen from
	// here, or that the reign is over in which alone the write was to happen. It
	// did not happen.
	ErrNotLeader = errors.New("store: no leader: most servers cannot be reached")
	// ErrUnknownOutcome says that a write may have happened, or may still happen:
	// the leader was lost and none came in its place.
	ErrUnknownOutcome = errors.New("store: the leader was lost, and whether the write happened is unknown")
	// ErrRemoved says that the other members have removed this server.
	ErrRemoved = errors.New("this server was removed from the cluster: to let it join again, delete its data folder")
	// ErrSuperseded says that the cluster was recovered without this server, whose
	// state is of no more use. It joins again when it is started.
	ErrSuperseded = errors.New("the cluster was recovered without this server: it can join again")
)

// ConflictError says that an Op's Expect did not hold. Nothing of the whole
// Update was applied.
type ConflictError struct {
	Key     string
	Expect  int64
	Current *Entry // nil when the key does not exist
}

func (e *ConflictError) Error() string { return "store: conflict on " + e.Key }

// Codec turns stored bytes into the objects that all readers share, once, when
// a write is applied. All methods must be deterministic and safe for
// concurrent use.
type Codec interface {
	// Decode gives the object held by value, written at revision. It may not keep
	// a reference to value.
	Decode(key string, value []byte, revision int64) (any, error)
	// Stamp records revision in an object that came with the Op instead of
	// being decoded; the object is not yet visible to anyone else.
	Stamp(object any, revision int64)
	// Tombstone gives the object to show in the event of its deletion at
	// revision; last must not be changed.
	Tombstone(last any, revision int64) any
}

// bytesCodec serves a store without a Codec: objects are the bytes themselves.
type bytesCodec struct{}

func (bytesCodec) Decode(_ string, value []byte, _ int64) (any, error) {
	return append([]byte{}, value...), nil
}
func (bytesCodec) Stamp(any, int64)                {}
func (bytesCodec) Tombstone(last any, _ int64) any { return last }

// Entry is a key at one revision. Entries and what they point to are immutable
// and shared.
type Entry struct {
	Key            string
	CreateRevision int64
	ModRevision    int64
	Object         any

	size int // bytes of key and value, as a measure of what Object takes
}

// Expectations of an Op besides an exact mod-revision.
const (
	Any    int64 = -1 // whatever is there, or nothing
	Absent int64 = 0  // the key must not exist
)

// Op is one write. Each Op that changes something takes the next revision. To
// delete a key that does not exist changes nothing; with Expect: Absent it is
// an assertion.
type Op struct {
	Key    string
	Value  []byte // nil: delete the key
	Object any    // optional: the decoded form of Value; the store owns it from here on
	Expect int64  // mod-revision the key must have, Absent or Any
}

// EventType tells what an Event did to its key.
type EventType int8

// The kinds of event.
const (
	Created EventType = iota + 1
	Modified
	Deleted
)

// Event is one applied write. Events are shared by all watchers.
type Event struct {
	Type  EventType
	Entry *Entry // after the write; for Deleted, Object is the codec's Tombstone
	Prev  *Entry // before the write; nil for Created

	// Memo lets readers keep what they derived from the event (an encoding, say)
	// so that it is derived once and not once per watcher.
	Memo Memo
}

// Revision is the one at which the event happened.
func (e *Event) Revision() int64 { return e.Entry.ModRevision }
