// Package disk reads files and measures directories that containers may write
// to. What lies there can be anything, a FIFO or a link to a device included,
// and can be exchanged while it is looked at: nothing here waits for a container
// or follows it elsewhere.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotRegular says that there is something else than a file with content.
var ErrNotRegular = errors.New("not a regular file")

// Open opens a regular file for reading. A symbolic link is none.
func Open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return reopen(fd, path)
}

// OpenBeneath opens a regular file in a directory. Links within the directory
// are followed, others are refused.
func OpenBeneath(dir, path string) (*os.File, error) {
	fail := func(err error) error { return &os.PathError{Op: "open", Path: filepath.Join(dir, path), Err: err} }
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(err)
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for range 8 { // the kernel gives up for the moment when directories are moved meanwhile
		fd, err := unix.Openat2(root, path, &how)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, fail(err)
		}
		defer unix.Close(fd)
		return reopen(fd, filepath.Join(dir, path))
	}
	return nil, fail(unix.EAGAIN)
}

// reopen opens what fd stands for, once it is known to be a regular file: to
// open a device or a FIFO would have effects, or never return. A lease that a
// process holds on the file is not waited for.
func reopen(fd int, path string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	readable, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(readable), path), nil
}

// Tail gives the last bytes of a regular file, at most so many, and whether
// there are others before them.
func Tail(path string, most int64) (data []byte, cut bool, err error) {
	file, err := Open(path)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, false, err
	}
	from := max(0, info.Size()-most)
	data = make([]byte, info.Size()-from)
	n, err := file.ReadAt(data, from)
	if err == io.EOF { // it was shortened meanwhile
		err = nil
	}
	return data[:n], from > 0, err
}

// ReadBeneath reads a regular file in a directory, an error if it is larger than most.
func ReadBeneath(dir, path string, most int64) ([]byte, error) {
	file, err := OpenBeneath(dir, path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", file.Name(), most)
	}
	return data, err
}
