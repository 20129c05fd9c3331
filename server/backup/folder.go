package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Info is an entry of a list of snapshots.
type Info struct {
	Name     string    `json:"name"`
	Path     string    `json:"path"` // of a file, or s3://bucket/key
	Created  time.Time `json:"created"`
	Size     int64     `json:"size"` // bytes
	Revision int64     `json:"revision,omitempty"`
}

// List gives the snapshots in dir, oldest first, without looking into them.
func List(dir string) ([]Info, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	var list []Info
	for _, path := range paths {
		info, err := infoOf(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile, or no file
		case err != nil:
			return nil, err
		case validName.MatchString(info.Name):
			list = append(list, info)
		}
	}
	sortByAge(list)
	return list, nil
}

func sortByAge(list []Info) {
	slices.SortFunc(list, func(a, b Info) int { return a.Created.Compare(b.Created) })
}

func infoOf(path string) (Info, error) {
	stat, err := os.Stat(path)
	if err == nil && !stat.Mode().IsRegular() {
		err = &fs.PathError{Op: "list", Path: path, Err: fs.ErrNotExist}
	}
	if err != nil {
		return Info{}, err
	}
	return Info{Name: strings.TrimSuffix(filepath.Base(path), suffix), Path: path, Created: stat.ModTime(), Size: stat.Size()}, nil
}

// ErrNotFound says that there is no snapshot of that name.
var ErrNotFound = errors.New("there is no snapshot of that name")

// Delete removes a snapshot, and the wish to upload it.
func Delete(dir, name string) error {
	path, err := pathOf(dir, name)
	if err != nil {
		return err
	}
	if err := os.Remove(wishPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s: %s", ErrNotFound, dir, name)
	}
	return err
}

// pathOf is where the snapshot of that name is, with or without its suffix.
func pathOf(dir, name string) (string, error) {
	name = strings.TrimSuffix(name, suffix)
	if !validName.MatchString(name) {
		return "", fmt.Errorf("snapshot name %q: use letters, digits, dots and dashes", name)
	}
	return filepath.Join(dir, name+suffix), nil
}

// partialPattern names files that are being written.
const partialPattern = ".*.partial"

// sweep removes what writers that were killed have left.
func sweep(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, partialPattern))
	for _, path := range paths {
		if removeErr := os.Remove(path); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// wishPath is the file that says that the snapshot at path shall be in the
// bucket and is not yet.
func wishPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".upload")
}

// wishes gives the snapshots that wait to be uploaded, oldest first.
func wishes(dir string) ([]Info, error) {
	list, err := List(dir)
	return slices.DeleteFunc(list, func(info Info) bool {
		_, err := os.Stat(wishPath(info.Path))
		return err != nil
	}), err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
