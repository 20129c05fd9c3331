package cni

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"orch/netproxy/wire"
)

// noPorts publishes nothing.
type noPorts struct{}

func (noPorts) Adopt(string, netip.Addr, []wire.PortMapping) {}
func (noPorts) Publish(context.Context, string, netip.Addr, []wire.PortMapping) error {
	return nil
}
func (noPorts) Withdraw(string) {}

// FuzzCall is whatever a runtime may send: it is answered, nothing is written but
// records, and what failed leaves none.
func FuzzCall(f *testing.F) {
	for _, request := range []string{
		`{"command":"ADD","containerID":"a","netNS":"/x","ifName":"eth0","config":{"cniVersion":"1.0.0","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]}}}`,
		`{"command":"DEL","containerID":"../a","ifName":"eth0","config":{"cniVersion":"1.1.0"}}`,
		`{"command":"GC","config":{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"a"}]}}`,
		`{"command":"CHECK","containerID":"a","ifName":"eth0/..","config":{"cniVersion":"1.0.0"}}`,
		`{"command":"STATUS","config":null}`,
	} {
		f.Add([]byte(request))
	}
	dir := f.TempDir()
	s := New(Config{Dir: dir, PodCIDR: netip.MustParsePrefix("10.42.0.0/29"), HostPorts: noPorts{}, Logger: slog.New(slog.DiscardHandler)})
	s.pool = newPool(s.cfg.PodCIDR, netip.Addr{})
	s.wiring.gateway = s.pool.gateway()
	if err := os.MkdirAll(s.records.dir, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var request wire.Request
		if json.Unmarshal(data, &request) != nil {
			return
		}
		if request.NetNS != "" {
			request.NetNS = filepath.Join(dir, "no-namespace") // never one of this machine's
		}
		if _, err := s.Handle(t.Context(), &request); err != nil && toError(err).Code == 0 {
			t.Errorf("an error without a code: %v", err)
		}
		if len(s.sandboxes) != 0 || len(s.pool.used) != 0 {
			t.Errorf("%s left %v", data, s.sandboxes)
		}
		if left, _ := filepath.Glob(filepath.Join(s.records.dir, "*"+recordSuffix)); len(left) != 0 {
			t.Errorf("%s left %v", data, left)
		}
	})
}

// FuzzRecord is a record that lost power or somebody edited.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"a","netns":"/x","ifName":"eth0","addr":"10.42.0.2","hostLink":"veth0"}`))
	f.Add([]byte(`{"id":"a","addr":"10.`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		r := records{dir: dir}
		if err := os.WriteFile(r.path("a"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := r.load()
		if err != nil {
			t.Error(err)
		}
		for _, rec := range all {
			if rec.ID != "a" || !rec.Addr.Is4() {
				t.Errorf("taken over: %+v", rec)
			}
		}
	})
}
