// Package footprint keeps a quiet process's resident memory near what it uses.
//
// After a burst of work the heap is large and mostly free. The collector would
// give that back within minutes, for it runs seldom while nothing is allocated.
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
	goruntime "runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"syscall"
	"time"
)

// worthwhile is how many free bytes are worth the collection that lets them go.
const worthwhile = 32 << 20

// pace is when memory is let go.
type pace struct {
	// settle is how long after the call of Run the start's memory is let go.
	settle time.Duration
	// period is how often the executable's pages are unmapped afterwards, so
	// that those of a busy hour do not stay for ever. What is in use comes back
	// from the page cache in about a millisecond altogether.
	period time.Duration
	// quiet is how long after the last collection of garbage a burst counts as
	// over. The store keeps the history of a burst for half a minute.
	quiet time.Duration
	// pause is the least time from one letting go to the next.
	pause time.Duration
}

// Run lets memory go that only the start or a burst of work needed, and from time
// to time the executable's pages that are not in use, until ctx ends.
func Run(ctx context.Context) error {
	return run(ctx, pace{settle: 3 * time.Second, period: 5 * time.Minute, quiet: 40 * time.Second, pause: time.Minute})
}

func run(ctx context.Context, p pace) error {
	timer := time.NewTimer(p.settle)
	defer timer.Stop()
	calm := time.NewTimer(p.settle)
	defer calm.Stop()
	collected := make(chan struct{}, 1)
	tellCollections(ctx, collected)
	var started bool
	var freed time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			calm.Reset(max(p.quiet, time.Until(freed.Add(p.pause))))
		case <-calm.C:
			switch {
			case !started:
				started = true
				debug.FreeOSMemory()
			case free() > worthwhile:
				freed = time.Now()
				debug.FreeOSMemory()
			}
		case <-timer.C:
			// A system that refuses keeps more pages resident: that is all.
			if err := Unmap(); errors.Is(err, errors.ErrUnsupported) {
				timer.Stop()
				continue
			}
			timer.Reset(p.period)
		}
	}
}

// tellCollections puts a token into collected after each collection of garbage,
// until ctx ends. The token of another may still be there.
func tellCollections(ctx context.Context, collected chan<- struct{}) {
	mark := new([4]*byte) // garbage at once; large enough to be an allocation of its own
	goruntime.AddCleanup(mark, func(collected chan<- struct{}) {
		select {
		case collected <- struct{}{}:
		default:
		}
		if ctx.Err() == nil {
			tellCollections(ctx, collected)
		}
	}, collected)
}

// free is how many bytes of the heap are resident and hold nothing.
func free() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() + sample[1].Value.Uint64()
}

// Unmap unmaps the pages of the executable that are as they are in its file. They
// are mapped again, from the page cache, when they are next used. Pages that can
// be written, or were (the dynamic loader's, in an executable that uses C), are
// left alone: those would lose what was written.
func Unmap() error {
	path, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the executable: %w", err)
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read mappings: %w: %w", errors.ErrUnsupported, err)
	}
	defer smaps.Close()
	return eachUnchanged(smaps, path, unmap)
}

// eachUnchanged calls do with start and length of each private mapping of the
// file that cannot be written and holds nothing but the file's own pages; smaps
// has the form of /proc/PID/smaps, see proc(5): a line for each mapping, followed
// by its figures.
func eachUnchanged(smaps io.Reader, file string, do func(start, length uintptr) error) error {
	var start, end uintptr
	var ours bool
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && !strings.HasSuffix(fields[0], ":"):
			ours = len(fields) == 6 && fields[5] == file && (fields[1] == "r-xp" || fields[1] == "r--p")
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &start, &end); err != nil {
				return fmt.Errorf("mapping %q: %w", fields[0], err)
			}
		case ours && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			if err := do(start, end-start); err != nil {
				return err
			}
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
