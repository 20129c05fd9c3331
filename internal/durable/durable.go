// Package durable makes names of files and directories last: a file that was
// synced may still be gone after a loss of power when its directory was not.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// MakeDir makes a directory with mode 0700, and those above it that are
// missing.
func MakeDir(path string) error {
	parent := filepath.Dir(path)
	if _, err := os.Stat(path); err == nil || parent == path {
		return err
	}
	if err := MakeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// SyncDir makes all changes of names in a directory last.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
