// Package footprint keeps a quiet process's resident memory near what it uses.
//
// Most of this executable's pages are touched once, at start: each package's
// initialisation faults in a little, and the kernel maps the neighbours of each
// page with it. They stay mapped until memory is short, and count as ours
// wherever memory is looked at.
package footprint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

const (
	// settle is how long after the call of Run the start's memory is let go.
	settle = 3 * time.Second
	// period is how often the executable's pages are unmapped afterwards, so
	// that those of a busy hour do not stay for ever. What is in use comes back
	// from the page cache in about a millisecond altogether.
	period = 5 * time.Minute
)

// Run lets memory go that only the start needed, and from time to time the
// executable's pages that are not in use, until ctx ends.
func Run(ctx context.Context) error {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if !started {
			started = true
			debug.FreeOSMemory()
		}
		// A system that refuses keeps more pages resident: that is all.
		if err := Unmap(); errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		timer.Reset(period)
	}
}

// Unmap unmaps the pages of the executable that are as they are in its file. They
// are mapped again, from the page cache, when they are next used. Pages that can
// be written are left alone: those would lose what was written.
func Unmap() error {
	path, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the executable: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read mappings: %w: %w", errors.ErrUnsupported, err)
	}
	defer maps.Close()
	return eachReadOnly(maps, path, unmap)
}

// eachReadOnly calls do with start and length of each private mapping of the
// file that cannot be written; maps has the form of /proc/PID/maps, see proc(5).
func eachReadOnly(maps io.Reader, file string, do func(start, length uintptr) error) error {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 || fields[5] != file || (fields[1] != "r-xp" && fields[1] != "r--p") {
			continue
		}
		var start, end uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &start, &end); err != nil {
			return fmt.Errorf("mapping %q: %w", fields[0], err)
		}
		if err := do(start, end-start); err != nil {
			return err
		}
	}
	return lines.Err()
}

func unmap(start, length uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, start, length, syscall.MADV_DONTNEED); errno != 0 {
		return fmt.Errorf("unmap pages of the executable: %w", errno)
	}
	return nil
}
