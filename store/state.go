package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// stateFile is the state on disk: every key as of one entry of the Raft log,
// its head. It lags behind the log, and is Raft's snapshot at the same time:
// whatever the head covers need not be replayed.
type stateFile struct {
	path string

	// mu is held for writing while the file is replaced by a restored one.
	mu sync.RWMutex
	db *bolt.DB
}

// head says which state a file holds.
type head struct {
	index, term        uint64 // of the last log entry in it
	revision           int64
	configuration      raft.Configuration // of the group
	configurationIndex uint64             // the log entry that set it; 0: unknown yet
}

// position is that of an entry in the log.
type position struct{ index, term uint64 }

func (h head) at() position { return position{h.index, h.term} }

// record is what is kept of a key. value nil: the key is gone.
type record struct {
	create, mod int64
	value       []byte
}

var (
	bucketKeys = []byte("keys")
	bucketHead = []byte("head")
	keyHead    = []byte("head")
)

// openStateFile opens the file and gives what it holds.
func openStateFile(path string, codec Codec) (*stateFile, head, *tree, error) {
	l := &loader{path: path, codec: codec}
	db, err := openBolt(path, l)
	if err != nil {
		return nil, head{}, nil, err
	}
	f := &stateFile{path: path, db: db}
	if err := f.prepare(); err != nil {
		db.Close()
		return nil, head{}, nil, explain(path, err)
	}
	return f, l.head, treeOf(l.entries), nil
}

func (f *stateFile) prepare() error {
	err := f.db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket(bucketKeys)
		if err == nil {
			_, err = tx.CreateBucket(bucketHead)
		}
		return err
	})
	if errors.Is(err, bolt.ErrBucketExists) {
		return nil
	}
	return err
}

// write brings the file to head h by setting records, in one transaction.
func (f *stateFile) write(h head, records map[string]record) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.db.Update(func(tx *bolt.Tx) error {
		keys := tx.Bucket(bucketKeys)
		for _, key := range slices.Sorted(maps.Keys(records)) {
			if err := putRecord(keys, []byte(key), records[key]); err != nil {
				return fmt.Errorf("key %q: %w", key, err)
			}
		}
		return tx.Bucket(bucketHead).Put(keyHead, encodeHead(h))
	})
}

func putRecord(keys *bolt.Bucket, key []byte, r record) error {
	if r.value == nil {
		return keys.Delete(key)
	}
	return keys.Put(key, encodeRecord(key, r))
}

// view runs fn on one consistent state of the file.
func (f *stateFile) view(fn func(h head, keys *bolt.Bucket) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.db.View(func(tx *bolt.Tx) error {
		var h head
		if value := tx.Bucket(bucketHead).Get(keyHead); value != nil {
			var err error
			if h, err = decodeHead(value); err != nil {
				return &CorruptError{f.path, fmt.Errorf("head: %w", err)}
			}
		}
		return fn(h, tx.Bucket(bucketKeys))
	})
}

func (f *stateFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.db.Close()
}

func encodeRecord(key []byte, r record) []byte {
	b := make([]byte, sumSize, sumSize+2*binary.MaxVarintLen64+len(r.value))
	b = binary.AppendUvarint(b, uint64(r.create))
	b = binary.AppendUvarint(b, uint64(r.mod-r.create))
	return seal(key, append(b, r.value...))
}

// decodeRecord keeps pointing into value.
func decodeRecord(key, value []byte) (record, error) {
	rest, err := unseal(key, value)
	if err != nil {
		return record{}, err
	}
	r := &reader{rest: rest}
	rec := record{create: int64(r.uvarint())}
	rec.mod = rec.create + int64(r.uvarint())
	if r.bad {
		return record{}, errMalformed
	}
	rec.value = r.rest
	return rec, nil
}

func encodeHead(h head) []byte {
	b := make([]byte, sumSize, 128)
	b = binary.AppendUvarint(b, h.index)
	b = binary.AppendUvarint(b, h.term)
	b = binary.AppendUvarint(b, uint64(h.revision))
	b = binary.AppendUvarint(b, h.configurationIndex)
	b = append(b, raft.EncodeConfiguration(h.configuration)...)
	return seal(keyHead, b)
}

func decodeHead(value []byte) (head, error) {
	rest, err := unseal(keyHead, value)
	if err != nil {
		return head{}, err
	}
	r := &reader{rest: rest}
	h := head{index: r.uvarint(), term: r.uvarint(), revision: int64(r.uvarint()), configurationIndex: r.uvarint()}
	if r.bad {
		return head{}, errMalformed
	}
	// It panics on bytes that are no configuration; the checksum has vouched for
	// them.
	h.configuration = raft.DecodeConfiguration(r.rest)
	return h, nil
}
