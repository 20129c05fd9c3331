// Package backup keeps snapshots of the cluster in a folder: the whole store as
// of one revision and the keys without which it is of no use.
package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
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
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	Server  string            `json:"server"` // that took it
	Version string            `json:"version"`
	Group   string            `json:"group"` // see store.Group
	Keys    map[string][]byte `json:"keys"`  // files under <data-dir>/server
}

// Info is an entry of a list of snapshots.
type Info struct {
	Name     string    `json:"name"`
	Path     string    `json:"path"`
	Created  time.Time `json:"created"`
	Size     int64     `json:"size"` // bytes
	Revision int64     `json:"revision,omitempty"`
}

// Store is what is backed up.
type Store interface {
	Backup(ctx context.Context, w io.Writer) (revision int64, err error)
	Group() string
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$`)

// ErrExists says that there is a snapshot of that name already.
var ErrExists = errors.New("there is a snapshot of that name already")

// Save writes a snapshot into dir. It is there wholly or not at all.
func Save(ctx context.Context, dir string, h Header, s Store) (Info, error) {
	if !validName.MatchString(h.Name) {
		return Info{}, fmt.Errorf("snapshot name %q: use letters, digits, dots and dashes", h.Name)
	}
	h.Group = s.Group()
	path := filepath.Join(dir, h.Name+suffix)
	if _, err := os.Stat(path); err == nil {
		return Info{}, fmt.Errorf("%w: %s", ErrExists, h.Name)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Info{}, err
	}
	file, err := os.CreateTemp(dir, ".*.partial") // mode 0600: there are keys in it
	if err != nil {
		return Info{}, err
	}
	defer os.Remove(file.Name()) // fails harmlessly after the rename
	revision, err := write(ctx, file, h, s)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return Info{}, fmt.Errorf("save snapshot %s: %w", h.Name, err)
	}
	if err := errors.Join(os.Rename(file.Name(), path), syncDir(dir)); err != nil {
		return Info{}, fmt.Errorf("save snapshot %s: %w", h.Name, err)
	}
	info, err := infoOf(path)
	info.Revision = revision
	return info, err
}

func write(ctx context.Context, w io.Writer, h Header, s Store) (int64, error) {
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
		return 0, err
	}
	revision, err := s.Backup(ctx, z)
	return revision, errors.Join(err, z.Close())
}

// Reader reads a snapshot: the header first, the state from Read.
type Reader struct {
	Header
	*zstd.Decoder
	file *os.File
}

// maxHeader bounds what a damaged file can make us read.
const maxHeader = 16 << 20

// Open opens the snapshot of that name in dir, or the file at that path.
func Open(dir, name string) (*Reader, error) {
	path := name
	if !strings.ContainsRune(name, '/') {
		path = filepath.Join(dir, strings.TrimSuffix(name, suffix)+suffix)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	r := &Reader{file: file}
	if r.Decoder, err = zstd.NewReader(file, zstd.WithDecoderConcurrency(1)); err == nil {
		err = r.readHeader()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not a whole and sound snapshot: %w", path, err), file.Close())
	}
	return r, nil
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

// List gives the snapshots in dir, oldest first.
func List(dir string) ([]Info, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	var list []Info
	for _, path := range paths {
		info, err := infoOf(path)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b Info) int { return a.Created.Compare(b.Created) })
	return list, nil
}

func infoOf(path string) (Info, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	return Info{Name: strings.TrimSuffix(filepath.Base(path), suffix), Path: path, Created: stat.ModTime(), Size: stat.Size()}, nil
}

// Delete removes a snapshot.
func Delete(dir, name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("snapshot name %q: use letters, digits, dots and dashes", name)
	}
	return os.Remove(filepath.Join(dir, strings.TrimSuffix(name, suffix)+suffix))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
