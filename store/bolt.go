package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// CorruptError says that a file of the store is damaged. The file is left as it
// is.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged (%v): nothing was changed; put back a sound copy of %s, or move that folder away to start with an empty cluster",
		e.Path, e.Err, filepath.Dir(e.Path))
}

func (e *CorruptError) Unwrap() error { return e.Err }

// lockTimeout is how long a process that is just dying may still hold the files.
const lockTimeout = time.Second

func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is found again when the file is opened. Written
		// with every append it would cost more than the append itself.
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
	}
}

// visitor sees all pairs of a file. What it is given is valid until end returns.
type visitor interface {
	visit(bucket, key, value []byte) error
	end() error
}

// openBolt opens or makes the file at path. An existing one is walked wholly
// before it is opened for writing: bbolt panics on many kinds of damage, on
// goroutines of its own as well.
func openBolt(path string, v visitor) (*bolt.DB, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Size() > 0:
		err = inspect(path, v)
	case err == nil || errors.Is(err, os.ErrNotExist):
		err = makeBolt(path)
	}
	if err != nil {
		return nil, err
	}
	var db *bolt.DB
	err = guard(path, func() (err error) {
		db, err = bolt.Open(path, 0o600, boltOptions())
		return explain(path, err)
	})
	return db, err
}

// makeBolt makes an empty file at path. It gets its name when it is whole, and
// has it for good: a loss of power leaves all of it or nothing.
func makeBolt(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// Another process that begins in the same folder must not be undone.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		return nil
	}
	fresh := path + ".fresh"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(fresh, 0o600, boltOptions())
	if err == nil {
		err = db.Close()
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		err = dir.Sync()
	}
	return explain(path, err)
}

// unmapPages takes the pages of a file out of this process's memory. They come
// back from the page cache when they are read.
func unmapPages(db *bolt.DB) error {
	// The file stays mapped where it is while a transaction is open.
	return db.View(func(tx *bolt.Tx) error {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// uncache drops the pages of the file at path from the page cache that are on
// the disk, and mapped nowhere.
func uncache(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED), file.Close())
}

// inspect reads every page in use of the file at path.
func inspect(path string, v visitor) error {
	options := boltOptions()
	options.ReadOnly = true
	return guard(path, func() error {
		db, err := bolt.Open(path, 0o600, options)
		if err != nil {
			return explain(path, err)
		}
		defer db.Close()
		return db.View(func(tx *bolt.Tx) error {
			if info, err := os.Stat(path); err != nil || info.Size() < tx.Size() {
				return &CorruptError{path, fmt.Errorf("shorter than its %d bytes in use", tx.Size())}
			}
			err := tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
				return walk(path, name, bucket, v)
			})
			if err != nil {
				return err
			}
			return v.end()
		})
	})
}

func walk(path string, name []byte, bucket *bolt.Bucket, v visitor) error {
	var last []byte
	return bucket.ForEach(func(key, value []byte) error {
		if last != nil && bytes.Compare(last, key) >= 0 {
			return &CorruptError{path, fmt.Errorf("keys of %s are out of order", name)}
		}
		last = key
		return v.visit(name, key, value)
	})
}

// explain names the file and the mend in the errors of opening it.
func explain(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is in use by another orch process: stop that one first, or use another data folder: %w", path, err)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return &CorruptError{path, err}
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("no space left on the disk of %s: free some and start again: %w", path, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// guard runs fn, which reads the memory-mapped file at path, and turns the
// faults and panics that a damaged file causes into an error.
func guard(path string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &CorruptError{path, fmt.Errorf("%v", r)}
		}
	}()
	return fn()
}

// Records in both files begin with a checksum over their key and the rest:
// bbolt itself checks no more than its two meta pages.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errChecksum = errors.New("checksum does not match")

const sumSize = 4

// seal fills in the checksum of record, whose first bytes are left free for it.
func seal(key, record []byte) []byte {
	putSum(record, checksum(key, record[sumSize:]))
	return record
}

// unseal gives the record without its checksum.
func unseal(key, record []byte) ([]byte, error) {
	if len(record) < sumSize || getSum(record) != checksum(key, record[sumSize:]) {
		return nil, errChecksum
	}
	return record[sumSize:], nil
}

func checksum(key, rest []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, rest)
}

func putSum(record []byte, sum uint32) {
	record[0], record[1], record[2], record[3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
}

func getSum(record []byte) uint32 {
	return uint32(record[0]) | uint32(record[1])<<8 | uint32(record[2])<<16 | uint32(record[3])<<24
}
