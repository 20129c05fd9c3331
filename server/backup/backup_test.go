package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
)

// text is a store whose state is a text.
type text string

func (s text) Backup(_ context.Context, w io.Writer, _ func(done, total int64)) (int64, error) {
	_, err := io.WriteString(w, string(s))
	return 7, err
}
func (text) Group() string { return "g/1" }

func TestSaveOpen(t *testing.T) {
	dir := t.TempDir() + "/snapshots"
	state := strings.Repeat("state ", 1000)
	header := Header{Name: "one", Server: "a", Keys: map[string][]byte{"tls/ca.key": []byte("key")}}
	info, err := Save(t.Context(), dir, header, text(state), nil)
	if err != nil || info.Revision != 7 {
		t.Fatal(info, err)
	}
	if stat, err := os.Stat(info.Path); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", stat.Mode(), err)
	}
	if _, err := Save(t.Context(), dir, header, text(""), nil); !errors.Is(err, ErrExists) {
		t.Errorf("saved twice: %v", err)
	}
	for _, name := range []string{"one", info.Path} {
		r, err := Open(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != state || r.Group != "g/1" || string(r.Keys["tls/ca.key"]) != "key" {
			t.Errorf("reads %d bytes, %+v, %v", len(got), r.Header, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(info.Path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range data { // wherever it is damaged, it shows
		bad := append([]byte{}, data...)
		bad[at] ^= 0x10
		if err := os.WriteFile(info.Path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(dir, "one")
		if err != nil {
			continue
		}
		got, err := io.ReadAll(r)
		if err == nil && string(got) != state {
			t.Errorf("damage at %d goes unseen", at)
		}
		r.Close()
	}
	if err := Delete(dir, "one"); err != nil {
		t.Error(err)
	}
	if list, err := List(dir); err != nil || len(list) != 0 {
		t.Errorf("left are %v, %v", list, err)
	}
	for _, name := range []string{"", "..", "../x", "a/b", ".hidden"} {
		if _, err := Save(t.Context(), dir, Header{Name: name}, text(""), nil); err == nil {
			t.Errorf("name %q is taken", name)
		}
	}
}

func newTestKeeper(dir string, bucket *Bucket) *Keeper {
	return NewKeeper(Config{
		Interval: time.Hour, Retain: 2, Dir: dir, Server: "a", Store: text("x"), Logger: slog.New(slog.DiscardHandler), Bucket: bucket,
		Header: func(name string) (Header, error) { return Header{Name: name}, nil },
	})
}

func names(list []Info) string {
	var all []string
	for _, info := range list {
		all = append(all, info.Name)
	}
	return strings.Join(all, " ")
}

func TestSchedule(t *testing.T) {
	dir := t.TempDir()
	k := newTestKeeper(dir, nil)
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	if due := k.due(now); due.Sub(now) != firstSnapshot {
		t.Errorf("the first is due in %v", due.Sub(now))
	}
	for _, name := range []string{"by-hand", "scheduled-a-b-20300102-030400.000", "scheduled-c-20300102-030400.000"} {
		if _, err := k.Save(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if _, err := k.save(t.Context(), k.scheduledName(now.Add(time.Duration(i-4)*time.Minute)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.forget(); err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil || len(list) != 5 {
		t.Errorf("left are %v, %v", list, err)
	}
	if own := k.scheduled(list); names(own) != "scheduled-a-20300102-030205.000 scheduled-a-20300102-030305.000" {
		t.Errorf("of its own left are %v", names(own))
	}
	if due := k.due(now); due.Sub(now) != 59*time.Minute {
		t.Errorf("due in %v", due.Sub(now))
	}
	before := now.Add(-24 * time.Hour)
	if due := k.due(before); due.Sub(before) != time.Hour {
		t.Errorf("due in %v once the clock was set back", due.Sub(before))
	}
}

// TestScheduleFullDisk: each attempt is told once, the pauses grow, and the
// schedule goes on when there is space.
func TestScheduleFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		began, tries := time.Now(), 0
		cfg := newTestKeeper(t.TempDir(), nil).Config
		cfg.Store = failing{text("x"), func() error {
			if tries++; tries <= 2 {
				return &os.PathError{Op: "write", Path: "state", Err: syscall.ENOSPC}
			}
			return nil
		}}
		ctx, stop := context.WithCancel(t.Context())
		cfg.Report = func(o Outcome) {
			told = append(told, fmt.Sprintf("%v full: %v", time.Since(began).Round(time.Minute), errors.Is(o.Err, syscall.ENOSPC)))
			if o.Err != nil && !strings.Contains(o.Err.Error(), "delete old snapshots") {
				t.Errorf("it does not say what to do: %v", o.Err)
			}
			if len(told) == 3 {
				stop()
			}
		}
		if err := NewKeeper(cfg).Run(ctx); err != nil {
			t.Error(err)
		}
		if got, want := strings.Join(told, ", "), "10m0s full: true, 11m0s full: true, 13m0s full: false"; got != want {
			t.Errorf("told: %s, want %s", got, want)
		}
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 1 {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}

// failing is a store whose backups fail half-way.
type failing struct {
	text
	fail func() error
}

func (f failing) Backup(ctx context.Context, w io.Writer, progress func(done, total int64)) (int64, error) {
	revision, err := f.text.Backup(ctx, w, progress)
	return revision, errors.Join(err, f.fail())
}

// TestSweep: what a killed process left is no snapshot, and goes away.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/.123.partial", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := List(dir); err != nil || len(list) > 0 {
		t.Errorf("listed are %v, %v", list, err)
	}
	if err := sweep(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestFind: a snapshot that is damaged or cut off is refused before any of it is
// used, wherever it is.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	info, err := Save(t.Context(), dir, Header{Name: "one", Keys: map[string][]byte{"k": []byte("key")}}, text(strings.Repeat("state ", 100)), nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(info.Path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, data []byte, good bool) {
		if err := os.WriteFile(info.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Find(t.Context(), dir, "one", S3{}, nil)
		if err == nil {
			r.Close()
		}
		if (err == nil) != good {
			t.Errorf("%s: %v", what, err)
		}
	}
	try("whole", data, true)
	for at := range data {
		try("cut off", data[:at], false)
		bad := append([]byte{}, data...)
		bad[at] ^= 0x10
		r, err := zstdOf(bad) // a few bits of the frame's head mean nothing
		try("damaged", bad, err == nil && r == zstdText(t, data))
	}
	try("foreign", []byte("PK\x03\x04"), false)
	if _, err := Find(t.Context(), dir, "two", S3{}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name that is not there: %v", err)
	}
}

func zstdOf(data []byte) (string, error) {
	r, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	return string(all), err
}

func zstdText(t *testing.T, data []byte) string {
	t.Helper()
	all, err := zstdOf(data)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
