package lossydisk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func mount(t *testing.T) (*Disk, string) {
	t.Helper()
	dir := t.TempDir()
	d, err := Mount(dir)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, dir
}

// sh lets another process work on the disk.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	// The shell enters the directory, not this process on its behalf: see Disk.
	out, err := exec.Command("sh", "-ec", "cd "+dir+"; "+script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// outcomes gives the content of name on many possible disks, with their number;
// "-" where it is not there.
func outcomes(t *testing.T, d *Disk, cut Cut, name string) map[string]int {
	t.Helper()
	seen := make(map[string]int)
	for seed := range uint64(200) {
		dir := t.TempDir()
		if err := d.Leave(dir, cut, rand.New(rand.NewPCG(seed, 1))); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			content = []byte("-")
		}
		seen[string(bytes.TrimSpace(content))]++
	}
	return seen
}

// TestLoses: what was not synced may be lost, what was is not.
func TestLoses(t *testing.T) {
	d, dir := mount(t)
	sh(t, dir, "echo old >file; sync file; sync .")
	old := d.Length()
	sh(t, dir, "echo new | dd of=file conv=notrunc status=none")
	if got := sh(t, dir, "cat file"); got != "new\n" {
		t.Errorf("file is %q", got)
	}
	unsynced := d.Length()
	sh(t, dir, "sync file")
	for _, c := range []struct {
		cut  int
		want []string
	}{{old, []string{"old"}}, {unsynced, []string{"old", "new"}}, {d.Length(), []string{"new"}}} {
		seen := outcomes(t, d, Cut{At: c.cut}, "file")
		for _, want := range c.want {
			if seen[want] == 0 {
				t.Errorf("cut at %d: never %q, but %v", c.cut, want, seen)
			}
		}
		if len(seen) != len(c.want) {
			t.Errorf("cut at %d: %v", c.cut, seen)
		}
	}
	if got := d.Written("file", unsynced); string(got) != "new\n" {
		t.Errorf("written is %q", got)
	}
}

// TestLosesPages: pages are lost one by one, and torn between sectors.
func TestLosesPages(t *testing.T) {
	d, dir := mount(t)
	sh(t, dir, "head -c 16384 /dev/zero >file; sync file; sync .; head -c 16384 /dev/zero | tr '\\0' x | dd of=file bs=16384 conv=notrunc status=none")
	torn, mixed := false, false
	for seed := range uint64(100) {
		left := t.TempDir()
		if err := d.Leave(left, Cut{At: d.Length()}, rand.New(rand.NewPCG(seed, 2))); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(left, "file"))
		if err != nil || len(content) != 16384 {
			t.Fatalf("%d bytes, %v", len(content), err)
		}
		var pages []bool
		for at := 0; at < len(content); at += sector {
			part := content[at : at+sector]
			if n := bytes.Count(part, []byte("x")); n != 0 && n != sector {
				t.Fatalf("a sector is torn: %d", n)
			}
			if at%page == 0 {
				pages = append(pages, part[0] == 'x')
			} else if (part[0] == 'x') != pages[len(pages)-1] {
				torn = true
			}
		}
		mixed = mixed || !pages[0] && pages[3]
	}
	if !torn || !mixed {
		t.Errorf("torn: %t, later pages without earlier ones: %t", torn, mixed)
	}
}

// TestLosesNames: a rename lasts once the directory is synced, and so does a
// file's name; a machine that keeps its power loses nothing.
func TestLosesNames(t *testing.T) {
	d, dir := mount(t)
	sh(t, dir, "mkdir a; sync .; echo one >a/file; sync a/file")
	unnamed := d.Length()
	sh(t, dir, "sync a; echo two >a/next; sync a/next; mv a/next a/file")
	renamed := d.Length()
	sh(t, dir, "sync a")
	for _, c := range []struct {
		cut  Cut
		want string
	}{
		{Cut{At: unnamed}, "- one"},
		{Cut{At: unnamed, Survives: func(path string) bool { return strings.HasPrefix(path, "a") }}, "one"},
		{Cut{At: renamed}, "one two"},
		{Cut{At: d.Length()}, "two"},
	} {
		seen := outcomes(t, d, c.cut, "a/file")
		for _, want := range strings.Fields(c.want) {
			if seen[want] == 0 {
				t.Errorf("cut at %d: never %q, but %v", c.cut.At, want, seen)
			}
		}
		if len(seen) != len(strings.Fields(c.want)) {
			t.Errorf("cut at %d: %v instead of %s", c.cut.At, seen, c.want)
		}
	}
}

func TestFull(t *testing.T) {
	d, dir := mount(t)
	sh(t, dir, "echo some >file")
	d.Fill(3)
	if err := exec.Command("sh", "-c", "echo more >>"+dir+"/file").Run(); err == nil {
		t.Error("a full disk takes more")
	}
	d.Free()
	sh(t, dir, "echo more >>file; mkdir -p x/y; rm -r x")
	if got := sh(t, dir, "cat file"); got != "some\nmore\n" {
		t.Errorf("file is %q", got)
	}
	if got := sh(t, dir, "ls"); got != "file\n" {
		t.Errorf("there is %q", got)
	}
}
