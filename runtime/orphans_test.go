package runtime

import (
	"slices"
	"testing"
)

func TestShimOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		id   string
	}{
		"shim":        {[]string{"/d/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "abc", "-address", "/d/c.sock"}, "abc"},
		"other node":  {[]string{"/d/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "abc", "-address", "/e/c.sock"}, ""},
		"errand":      {[]string{"/d/bin/containerd-shim-runc-v2", "-id", "abc", "-address", "/d/c.sock", "delete"}, ""},
		"other":       {[]string{"/bin/sh", "-id", "abc", "-address", "/d/c.sock"}, ""},
		"cut short":   {[]string{"/d/bin/containerd-shim-runc-v2", "-address", "/d/c.sock", "-id"}, ""},
		"kernel task": {nil, ""},
	} {
		if id, ok := shimOf(test.args, "/d/c.sock"); id != test.id || ok != (test.id != "") {
			t.Errorf("%s: %q %v, want %q", name, id, ok, test.id)
		}
	}
}

func TestDescendants(t *testing.T) {
	t.Parallel()
	processes := []process{{pid: 1}, {pid: 10, parent: 1}, {pid: 11, parent: 10}, {pid: 12, parent: 11}, {pid: 20, parent: 1}}
	if got := descendants(processes, 10); !slices.Equal(got, []int{12, 11}) {
		t.Errorf("descendants of 10: %v", got)
	}
	if parent := parentOf([]byte("7 (a ) b) S 42 7 7")); parent != 42 {
		t.Errorf("parent %d, want 42", parent)
	}
}
