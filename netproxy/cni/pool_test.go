package cni

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"orch/netproxy/wire"
)

func TestPool(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.42.0.0/29"), netip.Addr{})
	for _, want := range []string{"10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.6"} {
		if got, err := p.allocate("x"); err != nil || got.String() != want {
			t.Fatalf("got %s, %v; want %s", got, err, want)
		}
	}
	if _, err := p.allocate("x"); !errors.Is(err, errPoolFull) {
		t.Fatalf("a full pool: %v", err)
	}
	// Released addresses come back in turn, not last in first out.
	for _, addr := range []string{"10.42.0.6", "10.42.0.3", "10.42.0.2"} {
		p.release(netip.MustParseAddr(addr), "x")
	}
	for _, want := range []string{"10.42.0.2", "10.42.0.3", "10.42.0.6"} {
		if got, err := p.allocate("y"); err != nil || got.String() != want {
			t.Fatalf("got %s, %v; want %s", got, err, want)
		}
	}
	p.release(netip.MustParseAddr("10.42.0.6"), "x") // not x's any more
	if _, err := p.allocate("z"); !errors.Is(err, errPoolFull) {
		t.Fatalf("another's address was released: %v", err)
	}
	if next := newPool(netip.MustParsePrefix("10.42.0.0/24"), netip.MustParseAddr("10.42.0.9")); next.last.String() != "10.42.0.9" {
		t.Errorf("the turn does not go on: %s", next.last)
	}
	if next := newPool(netip.MustParsePrefix("10.42.0.0/24"), netip.MustParseAddr("10.99.0.9")); next.last != next.gateway() {
		t.Errorf("an address of another range was taken over: %s", next.last)
	}
}

func TestRecordsSurviveDamage(t *testing.T) {
	r := records{dir: filepath.Join(t.TempDir(), "sandboxes")}
	if all, err := r.load(); err != nil || len(all) != 0 {
		t.Fatalf("an empty directory: %v, %v", all, err)
	}
	good := &record{ID: "good", NetNS: "/run/netns/good", IfName: "eth0", Addr: netip.MustParseAddr("10.42.0.2"), HostLink: "veth0", Ports: []wire.PortMapping{{HostPort: 1}}}
	if err := r.save(good); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"cut.json": `{"id":"cut","addr":"10.`, "empty.json": "", "other.json": `{"id":"x","addr":"10.42.0.3"}`, "good.json.new": "half"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.load()
	if err != nil || len(all) != 1 || all[0].Addr != good.Addr || len(all[0].Ports) != 1 {
		t.Fatalf("got %v, %v", all, err)
	}
	if _, err := os.Stat(r.path("cut")); !os.IsNotExist(err) {
		t.Errorf("a damaged record was kept: %v", err)
	}
}

func TestHandleRejects(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	config := []byte(`{"cniVersion":"1.0.0","name":"orch"}`)
	for name, test := range map[string]struct {
		request wire.Request
		code    uint
	}{
		"no configuration": {wire.Request{Command: "ADD"}, wire.CodeDecode},
		"old version":      {wire.Request{Command: "ADD", Config: []byte(`{"cniVersion":"0.3.1"}`)}, 1},
		"path as id":       {wire.Request{Command: "ADD", ContainerID: "../x", IfName: "eth0", NetNS: "/x", Config: config}, wire.CodeInvalidEnv},
		"long interface":   {wire.Request{Command: "ADD", ContainerID: "x", IfName: "sixteen-letters-", NetNS: "/x", Config: config}, wire.CodeInvalidEnv},
		"no namespace":     {wire.Request{Command: "ADD", ContainerID: "x", IfName: "eth0", Config: config}, wire.CodeInvalidEnv},
		"check unknown":    {wire.Request{Command: "CHECK", ContainerID: "x", IfName: "eth0", Config: config}, wire.CodeUnknownContainer},
	} {
		_, err := s.Handle(t.Context(), &test.request)
		var known *wire.Error
		if !errors.As(err, &known) || known.Code != test.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}
