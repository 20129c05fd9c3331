package backup

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// spare is what a snapshot leaves of its disk, in bytes. The store may be on the
// same one, and ends the server when its log cannot grow.
const spare = 32 << 20

// sparing is a file that does not take the last space of its disk.
type sparing struct{ *os.File }

func (f sparing) Write(b []byte) (int, error) {
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &disk); err == nil && int64(disk.Bavail)*disk.Bsize < spare+int64(len(b)) {
		return 0, syscall.ENOSPC
	}
	return f.File.Write(b)
}

// explainFull says what mends a full disk.
func explainFull(dir string, err error) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return fmt.Errorf("the disk of %s is full, for the last %s are kept for the server's own files: free some, or delete old snapshots (orch snapshot delete): %w",
		dir, humanize.IBytes(spare), err)
}
