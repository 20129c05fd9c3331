// Package backup keeps snapshots of the cluster in a folder, and copies of them
// in S3: the whole store as of one revision and the keys without which it is of
// no use.
package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"orch/internal/joining"
)

// A snapshot is one zstd frame, whose checksum covers all of it:
//
//	snapshot = magic length(4, little-endian) header state
//
// header is the JSON of Header; state is the store's own stream, with a checksum
// of its own.
const magic = "orch snapshot 1\n"

// suffix of a snapshot's file name.
const suffix = ".orch"

// Header says what is in a snapshot.
type Header struct {
	Name     string            `json:"name"`
	Created  time.Time         `json:"created"`
	Server   string            `json:"server"` // that took it
	Version  string            `json:"version"`
	Group    string            `json:"group"` // see store.Group
	Keys     map[string][]byte `json:"keys"`  // files under <data-dir>/server
	Settings *joining.Settings `json:"settings,omitempty"`
}

// Progress is told how many bytes of how many are done.
type Progress func(done, total int64)

// Store is what is backed up.
type Store interface {
	Backup(ctx context.Context, w io.Writer, progress func(done, total int64)) (revision int64, err error)
	Group() string
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$`)

// Errors of Save.
var (
	ErrExists  = errors.New("there is a snapshot of that name already")
	ErrBadName = errors.New("use letters, digits, dots and dashes for the name of a snapshot")
)

// Save writes a snapshot into dir. It is there wholly or not at all.
func Save(ctx context.Context, dir string, h Header, s Store, progress Progress) (Info, error) {
	return save(ctx, dir, h, s, progress, nil)
}

// save calls beforehand, if not nil, with the path just before the snapshot
// appears there.
func save(ctx context.Context, dir string, h Header, s Store, progress Progress, beforehand func(path string) error) (Info, error) {
	if !validName.MatchString(h.Name) {
		return Info{}, fmt.Errorf("snapshot %q: %w", h.Name, ErrBadName)
	}
	h.Group = s.Group()
	path := filepath.Join(dir, h.Name+suffix)
	if _, err := os.Stat(path); err == nil {
		return Info{}, fmt.Errorf("%w: %s", ErrExists, h.Name)
	}
	var revision int64
	err := writeWhole(dir, path, func(file *os.File) (err error) {
		if revision, err = write(ctx, sparing{file}, h, s, progress); err == nil && beforehand != nil {
			err = beforehand(path)
		}
		return err
	})
	if err != nil {
		return Info{}, explainFull(dir, err)
	}
	info, err := infoOf(path)
	info.Revision = revision
	return info, err
}

// writeWhole makes the file at path, in dir, so that it is there wholly or not
// at all. Its mode is 0600: there are keys in it.
func writeWhole(dir, path string, fill func(*os.File) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, partialPattern)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // fails harmlessly after the rename
	err = fill(file)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(file.Name(), path), syncDir(dir))
}

func write(ctx context.Context, w io.Writer, h Header, s Store, progress Progress) (int64, error) {
	header, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return 0, err
	}
	start := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(header)))
	if _, err := z.Write(append(start, header...)); err != nil {
		_ = z.Close()
		return 0, err
	}
	revision, err := s.Backup(ctx, z, progress)
	if err != nil {
		_ = z.Close() // says the same again
		return 0, err
	}
	return revision, z.Close()
}

// Reader reads a snapshot: the header first, the state from Read.
type Reader struct {
	Header
	Path     string
	Progress Progress // told how much of the file was read; nil: nobody
	*zstd.Decoder
	file       *os.File
	done, size int64
}

// maxHeader bounds what a damaged file can make us read.
const maxHeader = 16 << 20

// Open opens the snapshot of that name in dir, or the file at that path.
func Open(dir, name string) (*Reader, error) {
	path := name
	if !strings.ContainsRune(name, '/') {
		var err error
		if path, err = pathOf(dir, name); err != nil {
			return nil, err
		}
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no file %s", ErrNotFound, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	r := &Reader{file: file, Path: path}
	stat, err := file.Stat()
	if err == nil {
		r.size = stat.Size()
		r.Decoder, err = zstd.NewReader(fileReader{r}, zstd.WithDecoderConcurrency(1))
	}
	if err == nil {
		err = r.readHeader()
	}
	if err != nil {
		return nil, errors.Join(unsound(path, err), file.Close())
	}
	return r, nil
}

// fileReader counts what is read from the file.
type fileReader struct{ r *Reader }

func (f fileReader) Read(b []byte) (int, error) {
	n, err := f.r.file.Read(b)
	f.r.done += int64(n)
	if f.r.Progress != nil {
		f.r.Progress(f.r.done, f.r.size)
	}
	return n, err
}

func (r *Reader) readHeader() error {
	start := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r.Decoder, start); err != nil {
		return err
	}
	if !bytes.HasPrefix(start, []byte(magic)) {
		return errors.New("it does not begin like one")
	}
	n := binary.LittleEndian.Uint32(start[len(magic):])
	if n > maxHeader {
		return errors.New("its header is too long")
	}
	header := make([]byte, n)
	if _, err := io.ReadFull(r.Decoder, header); err != nil {
		return err
	}
	return json.Unmarshal(header, &r.Header)
}

// Close closes the file.
func (r *Reader) Close() error {
	r.Decoder.Close()
	return r.file.Close()
}

// Find opens a snapshot to restore it: by its name, from dir or else from S3, or
// by its path. All of it has been read once, so that it is known to be whole.
func Find(ctx context.Context, dir, name string, where S3, progress Progress) (*Reader, error) {
	r, err := Open(dir, name)
	if errors.Is(err, ErrNotFound) && !strings.ContainsRune(name, '/') && where.Used() {
		var bucket *Bucket
		if bucket, err = NewBucket(where); err != nil {
			return nil, err
		}
		var path string
		if path, err = bucket.Fetch(ctx, name, dir, progress); err != nil {
			return nil, err
		}
		r, err = Open(dir, path)
	}
	if err != nil {
		return nil, err
	}
	if err := r.verify(); err != nil {
		return nil, err
	}
	return Open(dir, r.Path)
}

// Verify reads all of the snapshot at path; nil: it is whole and sound.
func Verify(path string) error {
	r, err := Open(filepath.Split(path))
	if err != nil {
		return err
	}
	return r.verify()
}

// verify reads r to its end and closes it.
func (r *Reader) verify() error {
	_, err := io.Copy(io.Discard, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return unsound(r.Path, err)
	}
	return nil
}

func unsound(path string, err error) error {
	return fmt.Errorf("%s is not a whole and sound snapshot: %w", path, err)
}
