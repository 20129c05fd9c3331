package store

import (
	"bytes"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// loader turns a state file into entries while it is walked.
type loader struct {
	path  string
	codec Codec

	head    head
	entries []*Entry
	pairs   []pair // not yet decoded; they point into the file
}

type pair struct{ key, value []byte }

// loadBatch is the number of records decoded side by side.
const loadBatch = 8192

func (l *loader) visit(bucket, key, value []byte) (err error) {
	if bytes.Equal(bucket, bucketHead) {
		if l.head, err = decodeHead(value); err != nil {
			return &CorruptError{l.path, fmt.Errorf("head: %w", err)}
		}
		return nil
	}
	l.pairs = append(l.pairs, pair{key, value})
	if len(l.pairs) < loadBatch {
		return nil
	}
	return l.end()
}

// end decodes the pairs at hand on all processors, keeping their order.
func (l *loader) end() error {
	pairs := l.pairs
	entries := make([]*Entry, len(pairs))
	var group errgroup.Group
	share := len(pairs)/runtime.GOMAXPROCS(0) + 1
	for from := 0; from < len(pairs); from += share {
		to := min(from+share, len(pairs))
		group.Go(func() error {
			return guard(l.path, func() error { return l.decode(entries[from:to], pairs[from:to]) })
		})
	}
	l.pairs = pairs[:0]
	if err := group.Wait(); err != nil {
		return err
	}
	l.entries = append(l.entries, entries...)
	return nil
}

func (l *loader) decode(entries []*Entry, pairs []pair) error {
	for i, p := range pairs {
		entry, err := loadEntry(l.codec, p)
		if err != nil {
			return &CorruptError{l.path, fmt.Errorf("key %q: %w", p.key, err)}
		}
		entries[i] = entry
	}
	return nil
}

func loadEntry(codec Codec, p pair) (*Entry, error) {
	r, err := decodeRecord(p.key, p.value)
	if err != nil {
		return nil, err
	}
	key := string(p.key)
	object, err := codec.Decode(key, r.value, r.mod)
	if err != nil {
		return nil, err
	}
	return &Entry{Key: key, CreateRevision: r.create, ModRevision: r.mod, Object: object, size: len(key) + len(r.value)}, nil
}

func treeOf(entries []*Entry) *tree {
	t := &tree{}
	for _, e := range entries {
		t.Load(e.Key, e)
	}
	return t
}
