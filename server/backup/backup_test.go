package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

// text is a store whose state is a text.
type text string

func (s text) Backup(_ context.Context, w io.Writer) (int64, error) {
	_, err := io.WriteString(w, string(s))
	return 7, err
}
func (text) Group() string { return "g/1" }

func TestSaveOpen(t *testing.T) {
	dir := t.TempDir() + "/snapshots"
	state := strings.Repeat("state ", 1000)
	header := Header{Name: "one", Server: "a", Keys: map[string][]byte{"tls/ca.key": []byte("key")}}
	info, err := Save(t.Context(), dir, header, text(state))
	if err != nil || info.Revision != 7 {
		t.Fatal(info, err)
	}
	if stat, err := os.Stat(info.Path); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", stat.Mode(), err)
	}
	if _, err := Save(t.Context(), dir, header, text("")); !errors.Is(err, ErrExists) {
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
		if _, err := Save(t.Context(), dir, Header{Name: name}, text("")); err == nil {
			t.Errorf("name %q is taken", name)
		}
	}
}

func TestSchedule(t *testing.T) {
	dir := t.TempDir()
	s := &Schedule{
		Interval: time.Hour, Retain: 2, Dir: dir, Store: text("x"), Logger: slog.New(slog.DiscardHandler),
		Header: func(name string) (Header, error) { return Header{Name: name}, nil },
	}
	if _, err := Save(t.Context(), dir, Header{Name: "by-hand"}, text("x")); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i := range 4 {
		info, err := s.take(t.Context(), now.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(info.Path, now, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := List(dir)
	if err != nil || len(list) != 3 {
		t.Errorf("left are %v, %v", list, err)
	}
	if due := s.due(now); due.Sub(now).Round(time.Second) != time.Hour+3*time.Second {
		t.Errorf("due in %v", due.Sub(now))
	}
}
