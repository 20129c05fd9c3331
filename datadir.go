package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"orch/internal/durable"
)

// lockDataDir keeps a second orch out of the data directory, in whatever
// container or mount namespace it runs. The lock goes with the process.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := durable.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	path := lockFile(dir)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		file.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("--data-dir %s: %s uses it already: stop that one, or give this one a folder of its own", dir, holder(path))
		}
		return nil, fmt.Errorf("--data-dir %s: lock %s: %w", dir, path, err)
	}
	// For people, and for orch server --dry-run.
	host, _ := os.Hostname()
	text := fmt.Sprintf("%d %s\n", os.Getpid(), host)
	if err := errors.Join(file.Truncate(0), writeAt(file, text)); err != nil {
		file.Close()
		return nil, fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	return func() { file.Close() }, nil
}

func lockFile(dir string) string { return filepath.Join(dir, "lock") }

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// holder words who has the lock. A number of another container's process means
// nothing here, so the host is told as well.
func holder(path string) string {
	data, _ := os.ReadFile(path)
	fields := strings.Fields(string(data))
	if len(fields) != 2 {
		return "another orch"
	}
	return fmt.Sprintf("another orch (process %s on %s)", fields[0], fields[1])
}

// lockHolder gives the process that has locked the data directory; 0: none has,
// or it cannot be told.
func lockHolder(dir string) int {
	file, err := os.Open(lockFile(dir))
	if err != nil {
		return 0
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK} // asked for, not taken
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0
	}
	data, err := os.ReadFile(file.Name())
	if err != nil {
		return 0
	}
	number, _, _ := strings.Cut(string(data), " ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return pid
}
