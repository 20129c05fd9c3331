package disk

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Usage of a directory: disk blocks in bytes, and files of any kind.
type Usage struct{ Bytes, Inodes int64 }

// Plus adds two usages.
func (u Usage) Plus(v Usage) Usage { return Usage{u.Bytes + v.Bytes, u.Inodes + v.Inodes} }

// ErrTooDeep says that directories lie in each other so deep that nobody but an
// attacker would make them.
var ErrTooDeep = errors.New("directories are nested too deep to be measured")

// maxDepth is also how many directories are open at once.
const maxDepth = 1024

// batch is how many names are read at once: a directory of millions is never
// in memory.
const batch = 512

// Measure adds up what lies below dir on its file system, a file with several
// names once. What goes away meanwhile, or cannot be read, counts as nothing.
func Measure(ctx context.Context, dir string) (Usage, error) {
	w := walk{seen: map[uint64]bool{}}
	var st unix.Stat_t
	if dir == "" || unix.Fstatat(unix.AT_FDCWD, dir, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return w.total, nil
	}
	w.device = st.Dev
	err := w.add(ctx, unix.AT_FDCWD, dir, &st, 0)
	return w.total, err
}

// walk is one measurement.
type walk struct {
	device uint64
	total  Usage
	seen   map[uint64]bool // inodes with several names
}

// add counts one name in the directory at, and what lies below it.
func (w *walk) add(ctx context.Context, at int, name string, st *unix.Stat_t, depth int) error {
	if st.Dev != w.device || w.seen[st.Ino] {
		return nil
	}
	directory := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if st.Nlink > 1 && !directory {
		w.seen[st.Ino] = true
	}
	const blockSize = 512 // whatever the file system's own is, stat(2)
	w.total.Bytes += st.Blocks * blockSize
	w.total.Inodes++
	if !directory {
		return nil
	}
	if depth == maxDepth {
		return ErrTooDeep
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	return w.entries(ctx, dir, depth)
}

func (w *walk) entries(ctx context.Context, dir *os.File, depth int) error {
	fd := int(dir.Fd())
	for {
		names, err := dir.Readdirnames(batch)
		if err != nil {
			return nil // its end
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			if err := w.add(ctx, fd, name, &st, depth+1); err != nil {
				return err
			}
		}
	}
}
