package address

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	first  = netip.MustParseAddr("10.91.0.22")
	second = netip.MustParseAddr("10.91.0.23")
)

func TestChoose(t *testing.T) {
	at := func(addr, link string) located { return located{netip.MustParseAddr(addr), link, true} }
	for name, test := range map[string]struct {
		machine machine
		want    string
	}{
		"the way out":           {machine{[]located{at("10.0.0.1", "eth1"), at("10.0.0.2", "eth0")}, netip.MustParseAddr("10.0.0.2")}, "10.0.0.2"},
		"no way out":            {machine{addresses: []located{at("127.0.0.1", "lo"), at("10.42.1.1", "orch0"), at("10.42.1.0", "orch-vxlan"), at("172.17.0.1", "docker0"), at("10.0.0.2", "eth0")}}, "10.0.0.2"},
		"a bridge of one's own": {machine{addresses: []located{at("172.18.0.1", "br-0123456789ab"), at("192.168.1.5", "br-lan")}}, "192.168.1.5"},
		"only our own":          {machine{addresses: []located{at("127.0.0.1", "lo"), at("10.42.1.1", "orch0"), at("10.244.0.1", "cni0"), at("169.254.3.4", "eth0")}}, ""},
		"a way out by our own":  {machine{[]located{at("10.42.1.1", "orch0")}, netip.MustParseAddr("10.42.1.1")}, ""},
		"a link that is down":   {machine{addresses: []located{{netip.MustParseAddr("10.0.0.2"), "eth0", false}}}, ""},
	} {
		got, ok := test.machine.choose()
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
}

// TestFollow moves an address about.
func TestFollow(t *testing.T) {
	var log bytes.Buffer
	tracker := Follow(first, false, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	here := func(addrs ...netip.Addr) *machine {
		m := new(machine)
		for _, a := range addrs {
			m.addresses = append(m.addresses, located{a, "eth0", true})
		}
		return m
	}
	start := time.Now()
	step := func(after time.Duration, m *machine, want netip.Addr, wait time.Duration) {
		t.Helper()
		if got, again := tracker.next(start.Add(after), m); got != want || again != wait {
			t.Errorf("after %s: %s, again in %s; want %s, %s", after, got, again, want, wait)
		}
	}
	step(0, here(first, second), first, 0)
	step(time.Second, here(), first, 0)    // the cable is out: nothing else to be
	step(time.Hour, here(first), first, 0) // and in again
	step(2*time.Hour, here(second), first, settle)
	step(2*time.Hour+time.Second, here(second, first), first, 0) // a lease was renewed
	step(3*time.Hour, here(second), first, settle)
	step(3*time.Hour+settle, here(second), second, 0)
	if text := log.String(); strings.Count(text, "is gone") != 1 || strings.Count(text, "is back") != 1 {
		t.Errorf("log:\n%s", text)
	}
}

// TestGiven is a node whose address people chose: it stays, and they hear of it.
func TestGiven(t *testing.T) {
	var log bytes.Buffer
	tracker := Follow(first, true, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	elsewhere := &machine{addresses: []located{{second, "eth0", true}}}
	for range 2 {
		if got, again := tracker.next(time.Now(), elsewhere); got != first || again != 0 {
			t.Errorf("it became %s", got)
		}
	}
	tracker.next(time.Now(), &machine{addresses: []located{{first, "eth0", true}}})
	if text := log.String(); strings.Count(text, "--node-ip is not an address of this machine") != 1 || strings.Count(text, "is back") != 1 {
		t.Errorf("log:\n%s", text)
	}
	if remembered(tracker.dataDir).IsValid() {
		t.Error("what was given is not to be remembered")
	}
}

// TestRemembered reads what an earlier process was.
func TestRemembered(t *testing.T) {
	dir := t.TempDir()
	Follow(second, false, dir, slog.Default()).remember()
	if got := remembered(dir); got != second {
		t.Errorf("%s", got)
	}
}
