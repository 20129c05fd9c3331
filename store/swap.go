package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"orch/internal/durable"
)

// A data folder gives way to another one in a single step, so that a process
// which dies at any moment leaves one of them in place, and the old one is kept:
//
//	store           the folder in use
//	store.new       the next one, while it is filled; after the step, for a moment, the old one
//	store.replaced  the old one for a moment, on file systems that cannot exchange two names
//	store.old…      the folders of before; nobody but the operator deletes them

// replacedMark is laid into a folder before it is replaced, which tells it from
// a new one that was never finished.
const replacedMark = "replaced"

// emptyAside gives an empty store.new.
func emptyAside(dir string) (string, error) {
	aside := dir + ".new"
	for _, replaced := range []string{aside, dir + ".replaced"} {
		if _, err := os.Stat(filepath.Join(replaced, replacedMark)); err == nil {
			if _, err := keepOld(replaced, dir); err != nil {
				return "", err
			}
		}
	}
	return aside, errors.Join(os.RemoveAll(aside), durable.MakeDir(aside))
}

// swap puts the folder aside in dir's place, and gives the path under which
// dir's old contents are kept, if there were any.
func swap(aside, dir string) (old string, err error) {
	if err := durable.SyncDir(aside); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return "", errors.Join(os.Rename(aside, dir), durable.SyncDir(filepath.Dir(dir)))
	}
	if err := writeSynced(filepath.Join(dir, replacedMark), ""); err != nil {
		return "", err
	}
	replaced := aside
	err = unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		replaced, err = swapInTwo(aside, dir)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(filepath.Join(dir, replacedMark)))
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return "", err
	}
	return keepOld(replaced, dir)
}

// swapInTwo is for file systems that cannot exchange names; undoSwap mends what
// it leaves when it is cut short.
func swapInTwo(aside, dir string) (replaced string, err error) {
	replaced = dir + ".replaced"
	if err := os.Rename(dir, replaced); err != nil {
		return "", err
	}
	if err := os.Rename(aside, dir); err != nil {
		return "", errors.Join(err, os.Rename(replaced, dir))
	}
	return replaced, nil
}

// undoSwap puts the old folder back where swapInTwo was cut short.
func undoSwap(dir string) error {
	_, err := os.Stat(dir)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(dir+".replaced", dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// keepOld gives a replaced folder the first name that is free.
func keepOld(replaced, dir string) (string, error) {
	old := dir + ".old"
	for i := 2; ; i++ {
		if _, err := os.Lstat(old); errors.Is(err, os.ErrNotExist) {
			break
		}
		old = fmt.Sprintf("%s.old-%d", dir, i)
	}
	return old, errors.Join(os.Rename(replaced, old), durable.SyncDir(filepath.Dir(dir)))
}

func writeSynced(path, text string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Sync(), file.Close())
}
