package robustness

import (
	"strings"
	"testing"
	"time"
)

// right is a history that keeps all guarantees: each test breaks it in one way,
// and the check must find that.
func right() *history {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	made := func(client int, k kind, value string, expect int64, called, returned int, o outcome, revision int64) call {
		return call{Client: client, Server: "one", Kind: k, Key: "a", Value: value, Expect: expect,
			Called: ms(called), Returned: ms(returned), Outcome: o, Revision: revision}
	}
	read := func(called, returned int, value string, revision int64) call {
		c := made(9, get, "", 0, called, returned, done, revision)
		c.Found = value
		return c
	}
	changes := []change{
		{added, "a", "v1", 11, ms(2)},
		{modified, "a", "v2", 12, ms(12)},
		{added, "b", "w1", 13, ms(22)},
		{modified, "a", "v3", 14, ms(36)},
		{bookmark, "", "", 15, ms(37)},
		{deleted, "a", "v3", 16, ms(42)},
		{added, "end", "", 17, ms(91)},
	}
	b := made(2, create, "w1", 0, 20, 24, done, 13)
	b.Key = "b"
	lost := made(3, put, "v3", 0, 30, 35, unknown, 0) // it happened
	dropped := made(4, put, "v4", 0, 50, 55, unknown, 0)
	final := func(server string) listing {
		return listing{Client: -1, Server: server, Pages: 1, Called: ms(92), Returned: ms(93), Revision: 17, Items: map[string]item{"b": {"w1", 13}}}
	}
	return &history{
		Base: 10, Keys: []string{"a", "b"},
		Calls: []call{
			made(1, create, "v1", 0, 1, 4, done, 11),
			read(5, 6, "v1", 11),
			made(1, update, "v2", 11, 10, 14, done, 12),
			made(2, update, "v9", 11, 15, 16, conflict, 0),
			made(2, create, "v8", 0, 17, 18, exists, 0),
			b, lost,
			read(38, 39, "v3", 14),
			made(5, remove, "", 14, 40, 44, done, 0),
			made(9, get, "", 0, 45, 46, missing, 0),
			dropped,
		},
		Listings: []listing{{Client: 7, Server: "two", Pages: 2, Called: ms(25), Returned: ms(26), Revision: 13,
			Items: map[string]item{"a": {"v2", 12}, "b": {"w1", 13}}}},
		Streams: []stream{
			{Server: "one", From: 10, Changes: append([]change(nil), changes...)},
			{Server: "two", From: 10, Changes: append([]change(nil), changes...)},
			{Server: "two", Resumed: true, From: 12, Changes: append([]change(nil), changes[2:4]...)},
		},
		Final: []listing{final("one"), final("two")},
	}
}

func TestCheckPassesWhatIsRight(t *testing.T) {
	for _, b := range right().check() {
		t.Error(b)
	}
}

// without drops one event of a stream.
func without(changes []change, i int) []change {
	return append(append([]change(nil), changes[:i]...), changes[i+1:]...)
}

func TestCheckFinds(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(h *history)
		want string // part of what is found
	}{
		{"a lost write", func(h *history) {
			for i := range h.Streams { // b was acknowledged, and is nowhere
				for j := range h.Streams[i].Changes {
					if h.Streams[i].Changes[j].Key == "b" {
						h.Streams[i].Changes = without(h.Streams[i].Changes, j)
						break
					}
				}
			}
			h.Final[0].Items, h.Final[1].Items = nil, nil
			h.Listings = nil
		}, "not linearizable"},
		{"a lost deletion", func(h *history) {
			for i := range h.Streams[:2] {
				h.Streams[i].Changes = without(h.Streams[i].Changes, 5)
			}
		}, "was acknowledged, and no stream tells of it"},
		{"a stale read", func(h *history) { h.Calls[7].Found, h.Calls[7].Revision = "v2", 12 }, "not linearizable"},
		{"a read of nothing", func(h *history) { h.Calls[7].Outcome = missing }, "not linearizable"},
		{"a value that comes back", func(h *history) {
			again := h.Calls[1]
			again.Called, again.Returned = 47*time.Millisecond, 48*time.Millisecond
			h.Calls = append(h.Calls, again)
		}, "not linearizable"},
		{"a swap that should have failed", func(h *history) { h.Calls[3].Outcome, h.Calls[3].Revision = done, 15 }, "not linearizable"},
		{"a conflict without cause", func(h *history) { h.Calls[2].Outcome = conflict }, "and its client was told: conflict"},
		{"a revision that goes back", func(h *history) { h.Calls[5].Revision = 9 }, "came after"},
		{"a refused write that happened", func(h *history) { h.Calls[6].Outcome = conflict }, "and its client was told: conflict"},
		{"a write nobody asked for", func(h *history) { h.Calls = withoutCall(h.Calls, 6) }, "nobody has asked for it"},
		{"a future event", func(h *history) { h.Streams[1].Changes[2].At = time.Millisecond }, "before it was asked for"},
		{"a repeated event", func(h *history) {
			s := &h.Streams[0]
			s.Changes = append(s.Changes[:2:2], s.Changes[1:]...)
		}, "is told twice"},
		{"events out of order", func(h *history) {
			c := h.Streams[0].Changes
			c[1], c[2] = c[2], c[1]
		}, "at 12 after 13"},
		{"a gap", func(h *history) { h.Streams[1].Changes = without(h.Streams[1].Changes, 1) }, "is left out"},
		{"a gap at the start of a resumed watch", func(h *history) { h.Streams[2].Changes = h.Streams[2].Changes[1:] }, "is left out"},
		{"an event from before", func(h *history) { h.Streams[2].From = 13 }, "at 13 after 13"},
		{"an event after its bookmark", func(h *history) { h.Streams[0].Changes[4].Revision = 16 }, "after a bookmark"},
		{"a bookmark that hides an event", func(h *history) {
			h.Streams[2].Changes = append(h.Streams[2].Changes, change{Type: bookmark, Revision: 17})
		}, "is left out"},
		{"servers that differ", func(h *history) { h.Streams[1].Changes[1].Value = "v7" }, "and elsewhere"},
		{"a wrong type", func(h *history) { h.Streams[1].Changes[1].Type = added }, "is told as ADDED"},
		{"a torn list", func(h *history) { h.Listings[0].Items["a"] = item{"v1", 11} }, "instead of"},
		{"pages of two revisions", func(h *history) { h.Listings[0].Torn = 14 }, "goes on at 14"},
		{"a stale list", func(h *history) {
			h.Listings[0].Revision, h.Listings[0].Items = 12, map[string]item{"a": {"v2", 12}}
		}, "had been acknowledged"},
		{"servers that do not agree at last", func(h *history) { h.Final[1].Items = map[string]item{} }, "at last"},
		{"a stale read of what never was", func(h *history) {
			never := h.Calls[1]
			never.Stale, never.Found = true, "v5"
			h.Calls = append(h.Calls, never)
		}, "where there is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := right()
			c.harm(h)
			found := strings.Join(h.check(), "\n")
			if !strings.Contains(found, c.want) {
				t.Errorf("found %q instead of %q", found, c.want)
			}
		})
	}
}

func withoutCall(calls []call, i int) []call {
	return append(append([]call(nil), calls[:i]...), calls[i+1:]...)
}

// Where no watch told of what happened, writes without an answer stay open, and
// the checker tries both.
func TestCheckWithoutWatches(t *testing.T) {
	h := right()
	h.Streams = nil
	for _, b := range h.check() {
		t.Error(b)
	}
	h.Calls[7].Found, h.Calls[7].Revision = "v2", 12
	if len(h.check()) != 0 {
		t.Error("the open write may not have happened yet")
	}
	h.Calls[7].Found, h.Calls[7].Revision = "v1", 11
	if len(h.check()) == 0 {
		t.Error("a stale read is not found")
	}
}
