package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"orch/internal/durable"
)

// The stream form of a state, in which servers send it to each other and
// backups keep it:
//
//	stream = magic head record* end
//	head   = length bytes              as in the state file, sealed
//	record = 1 key value               both with their length; value sealed
//	end    = 0 checksum(4)             of all before the checksum
const streamMagic = "orch state 1\n"

var errStream = errors.New("not a whole and sound orch state stream")

// stateReader makes the stream as it is read, off one transaction.
type stateReader struct {
	tx     *bolt.Tx
	cursor *bolt.Cursor
	buffer bytes.Buffer
	sum    uint32
	next   func() // appends the next piece to buffer; nil at the end
}

// open gives the state on file as a stream and what it is a state of.
func (f *stateFile) open() (*raft.SnapshotMeta, io.ReadCloser, error) {
	return f.openAt(new(int64))
}

// openAt also sets revision to that of the state.
func (f *stateFile) openAt(revision *int64) (*raft.SnapshotMeta, io.ReadCloser, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	tx, err := f.db.Begin(false)
	if err != nil {
		return nil, nil, err
	}
	head := bytes.Clone(tx.Bucket(bucketHead).Get(keyHead))
	h, err := decodeHead(head)
	if err != nil {
		tx.Rollback()
		return nil, nil, &CorruptError{f.path, fmt.Errorf("head: %w", err)}
	}
	*revision = h.revision
	meta := h.meta()
	meta.Size = streamSize(head, tx.Bucket(bucketKeys).Cursor())
	r := &stateReader{tx: tx, cursor: tx.Bucket(bucketKeys).Cursor()}
	r.next = func() { r.begin(head) }
	return meta, r, nil
}

// streamSize must be known beforehand: Raft's followers check it.
func streamSize(head []byte, cursor *bolt.Cursor) int64 {
	size := len(streamMagic) + uvarintSize(len(head)) + len(head) + 1 + sumSize
	for key, value := cursor.First(); key != nil; key, value = cursor.Next() {
		size += 1 + uvarintSize(len(key)) + len(key) + uvarintSize(len(value)) + len(value)
	}
	return int64(size)
}

func uvarintSize(n int) int {
	return len(binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64), uint64(n)))
}

func (r *stateReader) begin(head []byte) {
	r.buffer.WriteString(streamMagic)
	r.field(head)
	key, value := r.cursor.First()
	r.next = func() { r.record(key, value) }
}

func (r *stateReader) record(key, value []byte) {
	if key == nil {
		r.buffer.WriteByte(0)
		r.next = nil
		return
	}
	r.buffer.WriteByte(1)
	r.field(key)
	r.field(value)
	key, value = r.cursor.Next()
	r.next = func() { r.record(key, value) }
}

func (r *stateReader) field(b []byte) {
	r.buffer.Write(binary.AppendUvarint(r.buffer.AvailableBuffer(), uint64(len(b))))
	r.buffer.Write(b)
}

func (r *stateReader) Read(b []byte) (int, error) {
	for r.buffer.Len() < len(b) && r.next != nil {
		n := r.buffer.Len()
		r.next()
		r.sum = crc32.Update(r.sum, castagnoli, r.buffer.Bytes()[n:])
		if r.next == nil {
			r.buffer.Write(binary.LittleEndian.AppendUint32(nil, r.sum))
		}
	}
	return r.buffer.Read(b)
}

func (r *stateReader) Close() error { return r.tx.Rollback() }

// restore replaces the file by the state in source, made to be that of meta. On
// failure the old file stays.
func (f *stateFile) restore(source io.Reader, meta raft.SnapshotMeta, codec Codec) (head, *tree, error) {
	path := f.path + ".new"
	if err := receive(path, source, meta, 0); err != nil {
		return head{}, nil, errors.Join(fmt.Errorf("restore: %w", err), os.Remove(path))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// The new file is opened and read before the old one gives way to it.
	next, h, entries, err := openStateFile(path, codec)
	if err != nil {
		return head{}, nil, errors.Join(fmt.Errorf("restore: %w", err), os.Remove(path))
	}
	if err := errors.Join(os.Rename(path, f.path), durable.SyncDir(filepath.Dir(path))); err != nil {
		return head{}, nil, errors.Join(fmt.Errorf("restore: %w", err), next.db.Close())
	}
	old := f.db
	f.db = next.db
	return h, entries, old.Close()
}

// receive writes a stream into a fresh state file, whose revision is leap
// further than the stream's.
func receive(path string, source io.Reader, meta raft.SnapshotMeta, leap int64) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(path, 0o600, boltOptions())
	if err != nil {
		return explain(path, err)
	}
	// Synced once, at the end: a half-written file is thrown away anyhow.
	db.NoSync = true
	f := &stateFile{path: path, db: db}
	err = f.prepare()
	if err == nil {
		err = f.fill(&streamReader{source: bufio.NewReaderSize(source, 1<<16)}, meta, leap)
	}
	if err == nil {
		err = db.Sync()
	}
	return errors.Join(err, db.Close())
}

// fillBatch is the number of keys put in one transaction.
const fillBatch = 4096

func (f *stateFile) fill(r *streamReader, meta raft.SnapshotMeta, leap int64) error {
	h, err := r.head()
	if err != nil {
		return err
	}
	h.index, h.term, h.revision = meta.Index, meta.Term, h.revision+leap
	h.configuration, h.configurationIndex = meta.Configuration, meta.ConfigurationIndex
	for more := true; more; {
		err := f.db.Update(func(tx *bolt.Tx) error {
			keys := tx.Bucket(bucketKeys)
			for range fillBatch {
				var key, value []byte
				if key, value, more = r.record(); !more || r.err != nil {
					return r.err
				}
				if err := keys.Put(key, value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return f.write(h, nil)
}

// streamReader reads the stream form and its checksum.
type streamReader struct {
	source *bufio.Reader
	sum    uint32
	err    error
}

// take reads n bytes, growing as they come: a forged length allocates little.
func (r *streamReader) take(n uint64) []byte {
	var b bytes.Buffer
	if r.err == nil {
		_, err := io.CopyN(&b, r.source, int64(min(n, 1<<40)))
		r.fail(err)
	}
	r.sum = crc32.Update(r.sum, castagnoli, b.Bytes())
	return b.Bytes()
}

func (r *streamReader) fail(err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %w", errStream, err)
	}
}

func (r *streamReader) field() []byte {
	if r.err != nil {
		return nil
	}
	n, err := binary.ReadUvarint(r.source)
	r.fail(err)
	r.sum = crc32.Update(r.sum, castagnoli, binary.AppendUvarint(nil, n))
	return r.take(n)
}

func (r *streamReader) head() (head, error) {
	if magic := r.take(uint64(len(streamMagic))); string(magic) != streamMagic {
		r.fail(errMalformed)
		return head{}, r.err
	}
	b := r.field()
	if r.err != nil {
		return head{}, r.err
	}
	h, err := decodeHead(b)
	r.fail(err)
	return h, r.err
}

// record gives more false at the end of a sound stream and, with err set, where
// it is not sound.
func (r *streamReader) record() (key, value []byte, more bool) {
	switch mark := r.take(1); {
	case r.err != nil:
	case mark[0] == 1:
		key, value = r.field(), r.field()
		if r.err == nil {
			_, err := decodeRecord(key, value)
			r.fail(err)
		}
		return key, value, r.err == nil
	case mark[0] == 0:
		sum := r.sum
		if end := r.take(sumSize); r.err == nil && binary.LittleEndian.Uint32(end) != sum {
			r.fail(errChecksum)
		}
		// A compressed source checks its own sum when it comes to its end.
		if _, err := r.source.ReadByte(); !errors.Is(err, io.EOF) {
			r.fail(fmt.Errorf("something follows its end (%w)", err))
		}
	default:
		r.fail(errMalformed)
	}
	return nil, nil, false
}
