package footprint

import (
	"bytes"
	"context"
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestEachUnchanged(t *testing.T) {
	figures := func(anonymous string) string {
		return "Size:               4 kB\nAnonymous:          " + anonymous + " kB\nVmFlags: rd ex mr mw me\n"
	}
	smaps := "00400000-02caf000 r-xp 00000000 fe:00 1234                               /usr/bin/orch\n" + figures("0") +
		"02caf000-065bc000 r--p 028af000 fe:00 1234                               /usr/bin/orch\n" + figures("0") +
		"065bc000-065bd000 r--p 061bc000 fe:00 1234                               /usr/bin/orch\n" + figures("4") + // relocated
		"065bd000-0670a000 rw-p 061bd000 fe:00 1234                               /usr/bin/orch\n" + figures("0") +
		"17536f400000-175371c00000 rw-p 00000000 00:00 0 \n" + figures("0") +
		"7f034b626000-7f034b6a6000 r--s 00000000 fe:00 99                         /var/lib/orch/server/store/raft.db\n" + figures("0") +
		"7ffd0a1f2000-7ffd0a1f4000 r-xp 00000000 00:00 0                          [vdso]\n" + figures("0")
	var got []string
	if err := eachUnchanged(strings.NewReader(smaps), "/usr/bin/orch", func(start, length uintptr) error {
		got = append(got, fmt.Sprintf("%x+%x", start, length))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := "[400000+28af000 2caf000+390d000]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if err := eachUnchanged(strings.NewReader("x-y r-xp 0 0 0 /f\n"), "/f", func(_, _ uintptr) error { return nil }); err == nil {
		t.Error("a line that is none was taken")
	}
}

// TestUnmap shows that pages go, and that what was on them is still there.
func TestUnmap(t *testing.T) {
	before := residentFile(t)
	if err := Unmap(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after >= before {
		t.Errorf("file pages resident: %d kB before, %d kB after", before, after)
	}
}

// TestBurst shows that what a burst of work used is let go once it is over, or
// goes on with less.
func TestBurst(t *testing.T) {
	for name, p := range map[string]pace{
		"quiet": {period: time.Hour, quiet: time.Second, pause: time.Second, breath: time.Hour},
		"busy":  {period: time.Hour, quiet: time.Hour},
	} {
		t.Run(name, func(t *testing.T) { testBurst(t, p, name == "busy") })
	}
}

func testBurst(t *testing.T, p pace, busy bool) {
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx, p); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer stop()
	burst := make([][]byte, 256)
	for i := range burst {
		burst[i] = bytes.Repeat([]byte{1}, 1<<20)
	}
	before := resident(t, "RssAnon:")
	goruntime.KeepAlive(burst)
	burst = nil
	goruntime.GC()
	for deadline := time.Now().Add(time.Minute); resident(t, "RssAnon:") > before-200<<10; {
		if time.Now().After(deadline) {
			t.Fatalf("%d kB of %d are still resident", resident(t, "RssAnon:"), before)
		}
		<-time.After(100 * time.Millisecond)
		if busy {
			goruntime.GC()
		}
	}
}

func residentFile(t *testing.T) int { return resident(t, "RssFile:") }

func resident(t *testing.T, what string) (kilobytes int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), what)
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes
}
