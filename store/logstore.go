package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// logStore keeps the Raft log and the few stable values beside it (term, vote)
// in one bbolt file. One StoreLogs is one transaction. It is the raft.LogStore
// and raft.StableStore.
type logStore struct {
	db       *bolt.DB
	path     string
	pageSize int64

	// space is waited for by a write that meets a full disk; nil: it fails.
	space *space
	// failed is told of a write that did not reach the disk otherwise. The store
	// then stops.
	failed func(error)
	// appended is told of each append, when last has moved.
	appended *notice
	last     atomic.Uint64
	// since is when the append under way began, in Unix nanoseconds; 0: none is.
	since atomic.Int64

	// running is set once raft's goroutines use the log, halted closed when they
	// are about to be shut down.
	running atomic.Bool
	halted  chan struct{}

	mu     sync.Mutex
	stable map[string][]byte // what the file holds; guarded by mu
}

var (
	bucketLog    = []byte("log")
	bucketStable = []byte("stable")
)

// errNotFound must read like this: raft compares the text.
var errNotFound = errors.New("not found")

func openLogStore(path string, space *space, failed func(error), appended *notice) (*logStore, error) {
	l := &logStore{path: path, space: space, failed: failed, appended: appended, halted: make(chan struct{}), stable: make(map[string][]byte)}
	var err error
	if l.db, err = openBolt(path, l); err != nil {
		return nil, err
	}
	l.pageSize = int64(l.db.Info().PageSize)
	err = l.db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket(bucketLog)
		if err == nil {
			_, err = tx.CreateBucket(bucketStable)
		}
		return err
	})
	if errors.Is(err, bolt.ErrBucketExists) {
		err = nil
	}
	if err != nil {
		l.db.Close()
		return nil, l.explain(err)
	}
	last, err := l.LastIndex()
	l.last.Store(last)
	return l, err
}

// visit checks a record when the file is opened and takes the stable values in.
func (l *logStore) visit(bucket, key, value []byte) error {
	record, err := unseal(key, value)
	switch {
	case err != nil:
	case bytes.Equal(bucket, bucketStable):
		l.stable[string(key)] = bytes.Clone(record)
	case bytes.Equal(bucket, bucketLog):
		_, err = decodeLog(key, record)
	}
	if err != nil {
		return &CorruptError{l.path, fmt.Errorf("record %x of %s: %w", key, bucket, err)}
	}
	return nil
}

func (l *logStore) end() error { return nil }

func (l *logStore) close() error { return l.db.Close() }

// used is the size of what the file holds, without its free pages.
func (l *logStore) used() int64 {
	var size int64
	_ = l.db.View(func(tx *bolt.Tx) error { size = tx.Size(); return nil })
	return size - int64(l.db.Stats().FreePageN)*l.pageSize
}

func (l *logStore) explain(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("write %s: no space left on its disk: free some and start again: %w", l.path, err)
	}
	return fmt.Errorf("write %s: %w", l.path, err)
}

// FirstIndex gives 0 when the log is empty.
func (l *logStore) FirstIndex() (uint64, error) { return l.edge((*bolt.Cursor).First) }

// LastIndex gives 0 when the log is empty.
func (l *logStore) LastIndex() (uint64, error) { return l.edge((*bolt.Cursor).Last) }

func (l *logStore) edge(move func(*bolt.Cursor) (key, value []byte)) (index uint64, err error) {
	err = l.db.View(func(tx *bolt.Tx) error {
		if key, _ := move(tx.Bucket(bucketLog).Cursor()); key != nil {
			index = binary.BigEndian.Uint64(key)
		}
		return nil
	})
	return index, err
}

// GetLog gives a copy: the file may move in memory once the transaction ends.
func (l *logStore) GetLog(index uint64, log *raft.Log) error {
	return l.db.View(func(tx *bolt.Tx) error {
		key := logKey(index)
		value := tx.Bucket(bucketLog).Get(key)
		if value == nil {
			return raft.ErrLogNotFound
		}
		record, err := unseal(key, value)
		if err == nil {
			*log, err = decodeLog(key, bytes.Clone(record))
		}
		if err != nil {
			return &CorruptError{l.path, fmt.Errorf("log entry %d: %w", index, err)}
		}
		return nil
	})
}

// StoreLog appends one entry.
func (l *logStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends entries in one transaction: on return they are on disk.
func (l *logStore) StoreLogs(logs []*raft.Log) error {
	select {
	case <-l.halted:
		return ErrClosed
	default:
	}
	l.since.Store(time.Now().UnixNano())
	defer l.since.Store(0)
	err := l.update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketLog)
		// Entries only ever come at the end, so pages may be filled.
		bucket.FillPercent = 1
		for _, log := range logs {
			key := logKey(log.Index)
			if err := bucket.Put(key, seal(key, encodeLog(log))); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrClosed) {
		return err
	}
	if err != nil {
		err = l.explain(err)
		l.failed(err)
		return err
	}
	l.last.Store(logs[len(logs)-1].Index)
	l.appended.tell()
	return nil
}

// update is a transaction that waits for space on a full disk.
func (l *logStore) update(write func(*bolt.Tx) error) error {
	return l.space.insist(l.halted, func() error { return l.db.Update(write) })
}

// diskPatience is how long an append may take before the disk counts as stuck.
// A busy one needs far less, and to try another leader in vain costs an election.
const diskPatience = 1500 * time.Millisecond

// stuck tells whether an append has been under way for too long.
func (l *logStore) stuck() bool {
	since := l.since.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > diskPatience
}

// DeleteRange deletes the entries from first to last, both included.
func (l *logStore) DeleteRange(first, last uint64) error {
	return l.db.Update(func(tx *bolt.Tx) error {
		end := logKey(last)
		cursor := tx.Bucket(bucketLog).Cursor()
		for key, _ := cursor.Seek(logKey(first)); key != nil && bytes.Compare(key, end) <= 0; key, _ = cursor.Seek(logKey(first)) {
			if err := cursor.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set keeps a stable value. A running raft panics when it is told that a term
// could not be kept, so a failure is told to the store instead, and raft is held
// here until the store shuts it down: it does not go on to act on the unkept
// value.
func (l *logStore) Set(key, value []byte) error {
	err := l.set(key, value)
	if err == nil || !l.running.Load() {
		return err
	}
	if !errors.Is(err, ErrClosed) {
		l.failed(err)
	}
	<-l.halted
	return nil
}

func (l *logStore) set(key, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.stable[string(key)]; ok && bytes.Equal(old, value) {
		return nil
	}
	err := l.update(func(tx *bolt.Tx) error {
		record := append(make([]byte, sumSize, sumSize+len(value)), value...)
		return tx.Bucket(bucketStable).Put(key, seal(key, record))
	})
	if err != nil {
		return l.explain(err)
	}
	l.stable[string(key)] = bytes.Clone(value)
	return nil
}

// unset forgets a stable value.
func (l *logStore) unset(key []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.stable, string(key))
	return l.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketStable).Delete(key) })
}

// Get gives a stable value.
func (l *logStore) Get(key []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	value, ok := l.stable[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return bytes.Clone(value), nil
}

// has tells whether there is a stable value of that name.
func (l *logStore) has(key []byte) bool {
	_, err := l.Get(key)
	return err == nil
}

// SetUint64 keeps a stable number.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 gives a stable number.
func (l *logStore) GetUint64(key []byte) (uint64, error) {
	value, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, &CorruptError{l.path, fmt.Errorf("%s is not a number", key)}
	}
	return binary.BigEndian.Uint64(value), nil
}

func logKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// encodeLog leaves room for the checksum in front.
func encodeLog(log *raft.Log) []byte {
	b := make([]byte, sumSize, sumSize+1+4*binary.MaxVarintLen64+len(log.Extensions)+len(log.Data))
	b = append(b, byte(log.Type))
	b = binary.AppendUvarint(b, log.Term)
	b = binary.AppendVarint(b, log.AppendedAt.UnixNano())
	b = binary.AppendUvarint(b, uint64(len(log.Extensions)))
	b = append(b, log.Extensions...)
	return append(b, log.Data...)
}

// decodeLog keeps pointing into record.
func decodeLog(key, record []byte) (raft.Log, error) {
	if len(key) != 8 {
		return raft.Log{}, errMalformed
	}
	r := &reader{rest: record}
	log := raft.Log{Index: binary.BigEndian.Uint64(key), Type: raft.LogType(r.byte()), Term: r.uvarint()}
	log.AppendedAt = time.Unix(0, r.varint())
	if extensions := r.bytes(); len(extensions) > 0 {
		log.Extensions = extensions
	}
	if r.bad {
		return raft.Log{}, errMalformed
	}
	log.Data = r.rest
	return log, nil
}
