// Package embedded holds the programs and images that the orch executable
// carries in itself: runc, the containerd shim, the CNI helper, the pause image
// and the hello image. They are built by runtime/embedded/build.
package embedded

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

//go:embed assets
var assets embed.FS

// ManifestName is the asset that names all others; Suffix ends their file names.
const (
	ManifestName = "manifest.json"
	Suffix       = ".zst"
)

// ErrNotBuilt says that the executable was built without its assets.
var ErrNotBuilt = errors.New("built without embedded runtime: run make")

// Manifest names what is embedded.
type Manifest struct {
	Inputs   string // hash of the sources that all of it was built from
	Programs []File // unpacked on the node
	Images   []File // OCI archives
}

// File is one asset; SHA256 and Size are of its uncompressed content.
type File struct {
	Name   string
	SHA256 string
	Size   int64
	Refs   []string `json:",omitempty"` // of images: their names
}

// Load reads the manifest; ErrNotBuilt when there is none.
func Load() (*Manifest, error) {
	data, err := assets.ReadFile("assets/" + ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotBuilt
	}
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("read embedded manifest: %w", err)
	}
	return m, nil
}

// Open gives the uncompressed content of f.
func Open(f File) (io.ReadCloser, error) {
	// Opened, not read: the content is in the executable's mapping already.
	in, err := assets.Open("assets/" + f.Name + Suffix)
	if err != nil {
		return nil, fmt.Errorf("open embedded %s: %w", f.Name, err)
	}
	decoder, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("open embedded %s: %w", f.Name, err)
	}
	return decoder.IOReadCloser(), nil
}

// UnpackPrograms writes the programs to dir, those only that differ from what
// an earlier start left there. A program that runs is never written to: it is
// replaced by rename.
func (m *Manifest) UnpackPrograms(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var group errgroup.Group
	for _, f := range m.Programs {
		group.Go(func() error {
			if f.unpacked(dir) {
				return nil
			}
			if err := f.unpack(dir); err != nil {
				return fmt.Errorf("unpack %s: %w", f.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// hashFile records beside a program which content it has.
func (f File) hashFile(dir string) string { return filepath.Join(dir, "."+f.Name+".sha256") }

func (f File) unpacked(dir string) bool {
	hash, err := os.ReadFile(f.hashFile(dir))
	if err != nil || string(hash) != f.SHA256 {
		return false
	}
	info, err := os.Stat(filepath.Join(dir, f.Name))
	return err == nil && info.Size() == f.Size && info.Mode()&0o111 != 0
}

func (f File) unpack(dir string) error {
	unfinished, err := filepath.Glob(filepath.Join(dir, "."+f.Name+".new*"))
	if err != nil {
		return err
	}
	for _, path := range unfinished { // of a start that was killed
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	in, err := Open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, "."+f.Name+".new*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // gone already when all went well
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return err
	}
	// The hash goes first out and last in, so that a crash in between means
	// unpacking again and never trusting a half-known file.
	if err := os.Remove(f.hashFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(out.Name(), filepath.Join(dir, f.Name)); err != nil {
		return err
	}
	return os.WriteFile(f.hashFile(dir), []byte(f.SHA256), 0o644)
}
