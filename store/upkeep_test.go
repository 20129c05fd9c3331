package store

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestLetGo: pages that a flush or a busy time has touched are let go, and come
// back.
func TestLetGo(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprint("quiet=", quiet), func(t *testing.T) { testLetGo(t, quiet) })
	}
}

func testLetGo(t *testing.T, quiet bool) {
	s := run(t, Config{})
	for i := range 16 {
		mustUpdate(t, s, put(fmt.Sprintf("k/%d", i), strings.Repeat("v", 1<<20)))
	}
	if err := s.Check(t.Context()); err != nil { // reads all pages
		t.Fatal(err)
	}
	before := residentFile(t)
	s.letGo(quiet)
	if after := residentFile(t); after > before-(16<<10) {
		t.Errorf("%d kB of files in memory before, %d kB after", before, after)
	}
	mustUpdate(t, s, put("k/0", "w"))
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// residentFile is how much of files and of tmpfs is mapped and in memory, in kB.
func residentFile(t *testing.T) (kilobytes int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		var n int
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &n); err == nil {
			kilobytes += n
		}
		if _, err := fmt.Sscanf(line, "RssShmem: %d kB", &n); err == nil {
			kilobytes += n
		}
	}
	return kilobytes
}
