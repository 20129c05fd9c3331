package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnlyRegularFilesAreOpened lays out what a container can put in the place
// of a file. None of it may be waited for.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		unix.Mkfifo(path("fifo"), 0o666), unix.Mkdir(path("directory"), 0o777),
		unix.Symlink("/etc/passwd", path("absolute")), unix.Symlink("loop", path("loop")),
		unix.Symlink("../../../../../../etc/passwd", path("outside")), unix.Symlink("fifo", path("tofifo")),
		unix.Mknod(path("device"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 130))), // a watchdog: to open it starts it
		unix.Mknod(path("socket"), unix.S_IFSOCK|0o666, 0),
		os.WriteFile(path("file"), []byte("content"), 0o600), unix.Symlink("file", path("inside")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"fifo", "directory", "absolute", "loop", "outside", "tofifo", "device", "socket", "inside", "missing"} {
		if file, err := Open(path(name)); err == nil {
			file.Close()
			t.Errorf("Open of %s succeeds", name)
		}
		if _, err := ReadBeneath(dir, name, 100); err == nil && name != "inside" {
			t.Errorf("ReadBeneath of %s succeeds", name)
		}
	}
	if _, err := Open(path("fifo")); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a FIFO: %v", err)
	}
	for _, name := range []string{"file", "inside"} {
		if got, err := ReadBeneath(dir, name, 7); err != nil || string(got) != "content" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := ReadBeneath(dir, "file", 6); err == nil || !strings.Contains(err.Error(), "larger than 6 bytes") {
		t.Errorf("a file that is too large: %v", err)
	}
}

func TestTailIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, cut, err := Tail(path, 3); err != nil || string(got) != "def" || !cut {
		t.Errorf("%q %v %v", got, cut, err)
	}
	if err := os.Truncate(path, 1<<40); err != nil { // a hole
		t.Fatal(err)
	}
	if got, cut, err := Tail(path, 3); err != nil || len(got) != 3 || !cut {
		t.Errorf("a terabyte: %d bytes %v %v", len(got), cut, err)
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	big := make([]byte, 1<<20)
	for _, err := range []error{
		os.WriteFile(path("big"), big, 0o600), os.Link(path("big"), path("again")),
		os.WriteFile(path("not\xffutf8"), big, 0o600), unix.Mkfifo(path("fifo"), 0o666),
		os.Symlink("/usr", path("out")), os.Symlink(".", path("loop")), os.Mkdir(path("sub"), 0o700),
		os.WriteFile(path("sub/f"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * batch {
		if err := os.WriteFile(path(fmt.Sprint("many", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u, err := Measure(t.Context(), dir)
	if err != nil || u.Inodes != 8+2*batch || u.Bytes < 2<<20 || u.Bytes > 3<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := Measure(t.Context(), path("out")); err != nil || u.Inodes != 1 {
		t.Errorf("a link in the place of the directory: %+v, %v", u, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Measure(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("it goes on: %v", err)
	}
}

// TestMeasureDeepDirectories: beyond the longest path there is, files hid from
// those who look by path.
func TestMeasureDeepDirectories(t *testing.T) {
	dir := t.TempDir()
	nest := func(levels int) {
		at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		for range levels {
			if err == nil {
				err = unix.Mkdirat(at, strings.Repeat("d", 200), 0o700)
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				t.Fatal(err)
			}
			next, openErr := unix.Openat(at, strings.Repeat("d", 200), unix.O_PATH|unix.O_DIRECTORY, 0)
			unix.Close(at)
			at, err = next, openErr
		}
		if err != nil {
			t.Fatal(err)
		}
		file, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
		unix.Close(at)
		if err == nil {
			_, err = unix.Write(file, make([]byte, 1<<20))
			unix.Close(file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	nest(100)
	if u, err := Measure(t.Context(), dir); err != nil || u.Inodes != 102 || u.Bytes < 1<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	nest(maxDepth + 1)
	if _, err := Measure(t.Context(), dir); !errors.Is(err, ErrTooDeep) {
		t.Errorf("%v", err)
	}
}
