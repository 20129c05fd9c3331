package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRecover brings a group back from a backup, and from the files of one
// server; the others join again when they are started.
func TestRecover(t *testing.T) {
	for _, from := range []string{"backup", "files"} {
		t.Run(from, func(t *testing.T) {
			c := newTrio(t)
			for i := range 10 {
				mustUpdate(t, c.stores["b"], put(fmt.Sprintf("k/%d", i), "v"))
			}
			mustUpdate(t, c.stores["b"], Op{Key: "k/0", Expect: Any})
			c.inTouch(c.stores["c"])
			var backup bytes.Buffer
			revision, err := c.stores["c"].Backup(t.Context(), &backup, nil)
			if err != nil || revision != 11 {
				t.Fatalf("backup at revision %d: %v", revision, err)
			}
			group := c.stores["c"].Group()
			mustUpdate(t, c.stores["b"], put("k/later", "v"))
			want := list(t, c.stores["b"], "", 0)
			for _, name := range []string{"b", "c", "a"} {
				c.stop(name)
			}
			r := Recovery{Dir: c.cfgs["a"].Dir, Name: "a", Address: "a", Group: group}
			if from == "backup" {
				r.From = &backup
				want = "[k/1=v k/2=v k/3=v k/4=v k/5=v k/6=v k/7=v k/8=v k/9=v]"
			}
			old, err := Recover(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(old + "/raft.db"); err != nil {
				t.Error(err)
			}
			a := c.start("a")
			if got := list(t, a, "", 0); got != want || a.Revision() < revision+revisionLeap {
				t.Errorf("recovered: %s at revision %d, want %s", got, a.Revision(), want)
			}
			if _, err := a.Watch("k/", 12); !errors.Is(err, ErrCompacted) {
				t.Errorf("a watch from before the recovery: %v", err)
			}
			mustUpdate(t, a, put("k/new", "v"))
			// The old group must not come back to life, nor reach the new one.
			for _, name := range []string{"b", "c"} {
				cfg := c.cfgs[name]
				cfg.Raft, cfg.Peers = c.network.layer(t, name, "/raft"), c.network.layer(t, name, "/peers")
				s, stop := launchAside(t, cfg)
				<-s.memory.closed
				if err := stop(); !errors.Is(err, ErrSuperseded) {
					t.Errorf("%s ends with %v", name, err)
				}
				cfg.Join = nil // it knows by itself
				c.cfgs[name] = cfg
			}
			c.start("b")
			c.start("c")
			c.awaitVoters(3)
			mustUpdate(t, c.stores["c"], put("k/newer", "v"))
			c.same()
		})
	}
}

// TestRecoverFails: a damaged backup changes nothing.
func TestRecoverFails(t *testing.T) {
	dir := t.TempDir() + "/store"
	s, stop := launch(t, Config{Dir: dir})
	mustUpdate(t, s, put("k/1", "v"))
	var backup bytes.Buffer
	if _, err := s.Backup(t.Context(), &backup, nil); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, put("k/2", "v"))
	if _, err := Recover(t.Context(), Recovery{Dir: dir, Name: "a", From: &backup}); err == nil {
		t.Error("a running store is replaced")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, backup.Bytes()[:backup.Len()/2], flipped(backup.Bytes(), backup.Len()-20)} {
		if _, err := Recover(t.Context(), Recovery{Dir: dir, Name: "a", From: bytes.NewReader(bad)}); err == nil {
			t.Errorf("a bad backup of %d bytes is taken", len(bad))
		}
	}
	s = run(t, Config{Dir: dir})
	if got := list(t, s, "", 0); got != "[k/1=v k/2=v]" {
		t.Errorf("state is %s", got)
	}
}

// TestBranches: two servers that were recovered each by itself are two clusters.
func TestBranches(t *testing.T) {
	old := newGroup()
	a, b := old.successor(), old.successor()
	if a == b || a.supersedes(b) || b.supersedes(a) || !a.supersedes(old) || old.supersedes(a) || !a.successor().supersedes(b) {
		t.Errorf("%v and %v of %v", a, b, old)
	}
	for _, g := range []groupName{{}, old, a} {
		if got, err := parseGroup(g.String()); err != nil || got != g || len(g.wire()) != groupSize {
			t.Errorf("%v is read as %v, %v", g, got, err)
		}
	}
	for _, text := range []string{"x", "/1", "x/y", "x/1-", "x/1-0", "x/99999999999"} {
		if g, err := parseGroup(text); err == nil {
			t.Errorf("%q is read as %v", text, g)
		}
	}
}

// TestSwap kills a process, so to speak, at each step.
func TestSwap(t *testing.T) {
	has := func(path, text string) {
		t.Helper()
		if data, err := os.ReadFile(path + "/state"); err != nil || string(data) != text {
			t.Errorf("%s holds %q, %v instead of %q", path, data, err, text)
		}
	}
	fill := func(dir, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o700), writeSynced(dir+"/state", text)); err != nil {
			t.Fatal(err)
		}
	}
	exchange := func(dir string) error {
		return unix.Renameat2(unix.AT_FDCWD, dir+".new", unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	}
	for name, killed := range map[string]func(dir string) error{
		"before":    func(string) error { return nil },
		"marked":    func(dir string) error { return writeSynced(dir+"/"+replacedMark, "") },
		"exchanged": func(dir string) error { return errors.Join(writeSynced(dir+"/"+replacedMark, ""), exchange(dir)) },
		"second of two": func(dir string) error {
			return errors.Join(writeSynced(dir+"/"+replacedMark, ""), os.Rename(dir, dir+".replaced"), os.Rename(dir+".new", dir))
		},
		"first of two": func(dir string) error { return os.Rename(dir, dir+".replaced") },
		"first of two, twice": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".replaced"), undoSwap(dir), os.Rename(dir, dir+".replaced"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/store"
			fill(dir, "old")
			fill(dir+".new", "new")
			if err := killed(dir); err != nil {
				t.Fatal(err)
			}
			current := "old"
			if name == "exchanged" || name == "second of two" {
				current = "new"
			}
			if err := undoSwap(dir); err != nil {
				t.Fatal(err)
			}
			has(dir, current)
			aside, err := emptyAside(dir)
			if err != nil {
				t.Fatal(err)
			}
			if current == "new" {
				has(dir+".old", "old")
			}
			fill(aside, "newer")
			old, err := swap(aside, dir)
			if err != nil {
				t.Fatal(err)
			}
			has(dir, "newer")
			has(old, current)
		})
	}
}
