package volume

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"orch/agent/disk"
)

// file is one file of a volume whose content comes from the API.
type file struct {
	data []byte
	mode int32
	user *int64 // its owner; nil: root
}

// files are a volume's files by relative path.
type files map[string]file

// Names inside a volume with content from the API, as upstream has them:
// programs that watch such a volume wait for dataLink to change.
const (
	dataLink = "..data"
	newLink  = "..data_tmp"
)

// writeFiles makes the content of dir equal to want, all at once: the files
// lie in a directory named by time, "..data" points to it, and the visible
// names point through "..data". A reader sees the old files or the new ones.
// The group, if any, may read them from the first moment.
func writeFiles(dir string, want files, group *int64, now time.Time) error {
	want, err := cleanPaths(want)
	if err != nil {
		return err
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if current == "" || !sameFiles(filepath.Join(dir, current), want) {
		if current, err = publish(dir, want, group, now); err != nil {
			return err
		}
	}
	if err := linkVisible(dir, want); err != nil {
		return err
	}
	return removeStale(dir, current, want)
}

// cleanPaths refuses paths that would lead out of the volume or look like our
// own names. The API validates them too; a node does not rely on that.
func cleanPaths(want files) (files, error) {
	clean := make(files, len(want))
	for name, f := range want {
		if !filepath.IsLocal(name) || filepath.Clean(name) == "." {
			return nil, fmt.Errorf("invalid path: must be relative and stay inside the volume: %s", name)
		}
		name = filepath.Clean(name)
		if strings.HasPrefix(name, "..") {
			return nil, fmt.Errorf("invalid path: must not start with '..': %s", name)
		}
		clean[name] = f
	}
	return clean, nil
}

// publish writes the files beside the current ones and exchanges the two.
func publish(dir string, want files, group *int64, now time.Time) (string, error) {
	fresh, err := os.MkdirTemp(dir, now.UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return "", err
	}
	err = fill(fresh, want)
	if err == nil && group != nil {
		err = giveToGroup(fresh, *group, groupReads)
	}
	temporary := filepath.Join(dir, newLink)
	if err == nil {
		err = ignoreGone(os.Remove(temporary))
	}
	if err == nil {
		err = os.Symlink(filepath.Base(fresh), temporary)
	}
	if err == nil {
		err = os.Rename(temporary, filepath.Join(dir, dataLink))
	}
	if err != nil {
		_ = os.RemoveAll(fresh) // the first error counts
		return "", err
	}
	return filepath.Base(fresh), nil
}

func fill(dir string, want files) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range want {
		path := filepath.Join(dir, name)
		if strings.Contains(name, "/") {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := fillFile(path, f); err != nil {
			return err
		}
	}
	return nil
}

func fillFile(path string, f file) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write(f.data); err != nil {
		return err
	}
	if f.user != nil {
		if err := out.Chown(int(*f.user), -1); err != nil {
			return err
		}
	}
	if err := out.Chmod(fs.FileMode(f.mode) & fs.ModePerm); err != nil { // whatever the umask
		return err
	}
	return out.Close()
}

// sameFiles compares names and content. Modes are given once and never change.
func sameFiles(dir string, want files) bool {
	left := maps.Clone(want)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := left[name]
		if !ok {
			return fs.ErrExist
		}
		have, cut, err := disk.Tail(path, int64(len(f.data))+1)
		if err != nil || cut || !bytes.Equal(have, f.data) {
			return fs.ErrExist
		}
		delete(left, name)
		return nil
	})
	return err == nil && len(left) == 0
}

// topOf is the part of a path that is seen in the volume's directory.
func topOf(name string) string {
	top, _, _ := strings.Cut(name, "/")
	return top
}

// linkVisible makes the names that containers see.
func linkVisible(dir string, want files) error {
	for name := range want {
		top := topOf(name)
		err := os.Symlink(filepath.Join(dataLink, top), filepath.Join(dir, top))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// removeStale deletes names that show nothing any more and the directories of
// earlier contents. Only our own links go: a directory may be a mount point
// inside a running container, and would take the mount with it.
func removeStale(dir, current string, want files) error {
	tops := make(map[string]bool, len(want))
	for name := range want {
		tops[topOf(name)] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(dir, name)
		switch {
		case e.IsDir() && strings.HasPrefix(name, "..") && name != current:
			err = os.RemoveAll(path)
		case e.Type() == fs.ModeSymlink && !strings.HasPrefix(name, "..") && !tops[name]:
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
