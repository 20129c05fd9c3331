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

const (
	// worthwhile is how many free bytes are worth the collection that lets them go.
	worthwhile = 32 << 20
	// shrunk is how often what is live fits into the heap of one that has shrunk.
	// The collector lets the heap grow to twice what is live, so a busy heap that
	// keeps its size is never as large.
	shrunk = 3
)

// pace is when memory is let go.
type pace struct {
	// settle is how long after the call of Run the start's memory is let go.
	settle time.Duration
	// period is how often the executable's pages are unmapped afterwards, so
	// that those of a busy hour do not stay for ever. What is in use comes back
	// from the page cache in about a millisecond altogether.
	period time.Duration
	// quiet is how long after the last collection of garbage a burst counts as
	// over.
	quiet time.Duration
	// pause is the least time from one letting go in quiet to the next, which
	// always follows: the store keeps the history of a burst for half a minute.
	pause time.Duration
	// breath is the least time from one letting go to the next in a burst, which
	// comes when that needs much less memory than before.
	breath time.Duration
}

// Run lets memory go that only the start or a burst of work needed, and from time
// to time the executable's pages that are not in use, until ctx ends.
func Run(ctx context.Context) error {
	return run(ctx, pace{settle: 3 * time.Second, period: 5 * time.Minute, quiet: 3 * time.Second, pause: time.Minute, breath: 10 * time.Second})
}

func run(ctx context.Context, p pace) error {
	timer := time.NewTimer(p.settle)
	defer timer.Stop()
	calm := time.NewTimer(p.settle)
	defer calm.Stop()
	collected := make(chan struct{}, 1)
	tellCollections(ctx, collected)
	var started, again bool
	var calmed, eased time.Time // when memory was last let go in quiet, and in a burst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			if time.Since(eased) > p.breath && hasShrunk() {
				eased = time.Now()
				debug.FreeOSMemory()
			}
			calm.Reset(max(p.quiet, time.Until(calmed.Add(p.pause))))
		case <-calm.C:
			switch {
			case !started:
				started = true
				debug.FreeOSMemory()
			case isLoose():
				calmed, again = time.Now(), true
				debug.FreeOSMemory()
			case again:
				again = false
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

// heap gives how many bytes of it are resident, and how many of these were live
// at the last collection.
func heap() (resident, live uint64) {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(sample)
	for _, part := range sample[1:] {
		resident += part.Value.Uint64()
	}
	return resident, sample[0].Value.Uint64()
}

// hasShrunk tells, after a collection, that the heap is much larger than what it
// holds.
func hasShrunk() bool {
	resident, live := heap()
	return resident > shrunk*live+worthwhile
}

// isLoose tells that a collection may find much to let go.
func isLoose() bool {
	resident, live := heap()
	return resident > live+worthwhile
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
