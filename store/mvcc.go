package store

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
)

// tree holds the entries of now by key. Copies share nodes until written to.
type tree = btree.Map[string, *Entry]

// mvcc is the state in memory: the entries of now and the events that led to
// it. It knows nothing of Raft or files; one goroutine applies, many read.
type mvcc struct {
	codec Codec
	limit limit                               // of the history
	lane  func(key string, object any) string // see Config.Lane

	mu       sync.RWMutex // guards all below but shared
	now      *tree
	revision int64
	history  history
	closed   chan struct{} // closed when the store stops; wakes all watchers
	grown    chan struct{} // has a token when the history grew

	// shared is the newest copy handed to readers; nil once now has moved on.
	// Stored under mu, loaded without.
	shared atomic.Pointer[view]
}

// view is the state at one revision; nothing changes it any more.
type view struct {
	entries  *tree
	revision int64
}

func newMVCC(codec Codec, limit limit, lane func(key string, object any) string) *mvcc {
	return &mvcc{codec: codec, limit: limit, lane: lane, now: &tree{}, closed: make(chan struct{}), grown: make(chan struct{}, 1)}
}

// reset replaces everything by what was restored as of revision.
func (m *mvcc) reset(entries *tree, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.revision = entries, revision
	m.shared.Store(nil)
	m.history.reset(revision)
	for _, l := range m.history.resources {
		l.wake()
	}
	for _, l := range m.history.lanes {
		l.wake()
	}
}

// decode makes the objects of ops that came without. It is done before apply,
// outside its lock and on the caller's processor.
func decode(codec Codec, ops []Op) error {
	for i := range ops {
		op := &ops[i]
		if op.Value == nil || op.Object != nil {
			continue
		}
		object, err := codec.Decode(op.Key, op.Value, 0)
		if err != nil {
			return fmt.Errorf("decode %s: %w", op.Key, err)
		}
		op.Object = object
	}
	return nil
}

// check tells whether every Expect of ops holds. The lock is held by the caller.
func (m *mvcc) check(ops []Op) error {
	for i := range ops {
		op := &ops[i]
		if op.Expect == Any {
			continue
		}
		if held, current := m.holds(op, ops[:i]); !held {
			return &ConflictError{Key: op.Key, Expect: op.Expect, Current: current}
		}
	}
	return nil
}

// holds looks for the key among the earlier ops of the same Update first: a key
// written there has a revision that nobody can know yet.
func (m *mvcc) holds(op *Op, earlier []Op) (bool, *Entry) {
	current, _ := m.now.Get(op.Key)
	for i := len(earlier) - 1; i >= 0; i-- {
		if earlier[i].Key == op.Key {
			return op.Expect == Absent && earlier[i].Value == nil, current
		}
	}
	if current == nil {
		return op.Expect == Absent, nil
	}
	return op.Expect == current.ModRevision, current
}

// precheck is check for a reader: it finds the conflicts that are certain
// already.
func (m *mvcc) precheck(ops []Op) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.check(ops)
}

// apply does ops, which have been decoded and checked, and adds the logs to
// wake to touched. The lock is held by the caller.
func (m *mvcc) apply(ops []Op, touched map[*eventLog]struct{}) []*Entry {
	entries := make([]*Entry, len(ops))
	for i := range ops {
		event := m.write(&ops[i])
		if event == nil {
			continue
		}
		entries[i] = event.Entry
		touched[m.history.append(event)] = struct{}{}
		m.appendToLanes(event, touched)
	}
	m.history.keep(m.limit)
	m.shared.Store(nil)
	return entries
}

// write gives nil when there was nothing to delete.
func (m *mvcc) write(op *Op) *Event {
	if op.Value == nil {
		prev, ok := m.now.Delete(op.Key)
		if !ok {
			return nil
		}
		m.revision++
		return &Event{Type: Deleted, Prev: prev, Entry: &Entry{
			Key:            prev.Key,
			CreateRevision: prev.CreateRevision,
			ModRevision:    m.revision,
			Object:         m.codec.Tombstone(prev.Object, m.revision),
		}}
	}
	m.revision++
	m.codec.Stamp(op.Object, m.revision)
	entry := &Entry{Key: op.Key, CreateRevision: m.revision, ModRevision: m.revision, Object: op.Object, size: len(op.Key) + len(op.Value)}
	prev, replaced := m.now.Set(op.Key, entry)
	if !replaced {
		return &Event{Type: Created, Entry: entry}
	}
	entry.CreateRevision = prev.CreateRevision
	return &Event{Type: Modified, Entry: entry, Prev: prev}
}

// view gives the state of now. It costs a lock only when there was a write
// since the last one.
func (m *mvcc) view() *view {
	if v := m.shared.Load(); v != nil {
		return v
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.viewLocked()
}

func (m *mvcc) viewLocked() *view {
	v := m.shared.Load()
	if v == nil {
		v = &view{entries: m.now.Copy(), revision: m.revision}
		m.shared.Store(v)
	}
	return v
}

// past is a key's entry at an earlier revision; nil: it did not exist.
type past struct {
	key   string
	entry *Entry
}

// viewAt gives the state of now and, by key, what must be undone in it to see
// the keys with prefix as of revision at.
func (m *mvcc) viewAt(prefix string, at int64) (*view, []past, error) {
	if at == 0 {
		return m.view(), nil, nil
	}
	m.mu.Lock()
	v, events := m.viewLocked(), m.history.all
	if resource := resourceOf(prefix); strings.HasSuffix(resource, "/") {
		events = m.history.log(resource).events
	}
	compacted := m.history.compacted
	m.mu.Unlock()

	if at > v.revision {
		return nil, nil, ErrFutureRevision
	}
	if at < compacted {
		return nil, nil, ErrCompacted
	}
	return v, undo(since(events, at), prefix), nil
}

// undo gives the entries before the first event of each key.
func undo(events []*Event, prefix string) []past {
	var undone []past
	seen := make(map[string]struct{})
	for _, e := range events {
		key := e.Entry.Key
		if _, again := seen[key]; again || !strings.HasPrefix(key, prefix) {
			continue
		}
		seen[key] = struct{}{}
		undone = append(undone, past{key, e.Prev})
	}
	sort.Slice(undone, func(i, j int) bool { return undone[i].key < undone[j].key })
	return undone
}

// start is the first key that a scan may meet.
func start(prefix, after string) string {
	if after >= prefix {
		return after + "\x00"
	}
	return prefix
}

// scan merges the entries of v with what is undone, by key.
func (v *view) scan(prefix, after string, undone []past, yield func(*Entry) bool) {
	from := start(prefix, after)
	i := sort.Search(len(undone), func(i int) bool { return undone[i].key >= from })
	undone = undone[i:]
	// before yields what is undone at keys up to key, and tells whether key is
	// among them and whether to go on.
	before := func(key string) (hidden, more bool) {
		for len(undone) > 0 && undone[0].key <= key {
			p := undone[0]
			undone = undone[1:]
			hidden = p.key == key
			if p.entry != nil && !yield(p.entry) {
				return hidden, false
			}
		}
		return hidden, true
	}
	more := true
	v.entries.Ascend(from, func(key string, entry *Entry) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		var hidden bool
		if hidden, more = before(key); more && !hidden {
			more = yield(entry)
		}
		return more
	})
	for i := 0; more && i < len(undone); i++ {
		if undone[i].entry != nil {
			more = yield(undone[i].entry)
		}
	}
}

// count counts without looking at the entries when nothing is undone.
func (v *view) count(prefix, after string, undone []past) int {
	if undone == nil {
		end := v.entries.Len()
		if next, ok := successor(prefix); ok {
			end = v.rank(next)
		}
		return max(0, end-v.rank(start(prefix, after)))
	}
	n := 0
	v.scan(prefix, after, undone, func(*Entry) bool { n++; return true })
	return n
}

// rank is the number of keys before key.
func (v *view) rank(key string) int {
	return sort.Search(v.entries.Len(), func(i int) bool {
		at, _, _ := v.entries.GetAt(i)
		return at >= key
	})
}

// successor is the first string after all those with prefix.
func successor(prefix string) (string, bool) {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1}), true
		}
	}
	return "", false
}
