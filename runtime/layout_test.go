package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLayoutKeepsSocketsShort(t *testing.T) {
	short := newLayout("/var/lib/orch")
	if short.socket != "/var/lib/orch/agent/containerd/containerd.sock" || short.shims != "/var/lib/orch/agent/containerd/s" {
		t.Errorf("usual directory: %s, %s", short.socket, short.shims)
	}
	long := newLayout("/srv/" + strings.Repeat("x", 100))
	if len(long.socket) > maxSocket || len(long.shims) > maxSocketDir {
		t.Errorf("long directory: %s, %s", long.socket, long.shims)
	}
	if again := newLayout("/srv/" + strings.Repeat("x", 100) + "/"); again.socket != long.socket {
		t.Errorf("same directory, other socket: %s, %s", again.socket, long.socket)
	}
}

func TestPrepareRefusesSecondUser(t *testing.T) {
	l := testLayout(t)
	unlock, err := l.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.prepare(); err == nil || !strings.Contains(err.Error(), "another orch uses") {
		t.Errorf("second: %v", err)
	}
	unlock()
	if unlock, err = l.prepare(); err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	unlock()
}

func TestStateIsForgottenAfterReboot(t *testing.T) {
	l := testLayout(t)
	prepare := func() {
		t.Helper()
		unlock, err := l.prepare()
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
	prepare()
	stale := filepath.Join(l.state, "stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	prepare()
	if _, err := os.Stat(stale); err != nil {
		t.Errorf("lost without a reboot: %v", err)
	}
	if err := os.WriteFile(filepath.Join(l.state, "boot-id"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	prepare()
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("still there after a reboot: %v", err)
	}
}

// testLayout leaves nothing behind under /run.
func testLayout(t *testing.T) layout {
	t.Helper()
	l := newLayout(t.TempDir())
	t.Cleanup(func() {
		if dir := filepath.Dir(l.shims); strings.HasPrefix(dir, "/run/orch/") {
			os.RemoveAll(dir)
		}
	})
	return l
}

// Pods with users of their own pass the directories above their root file systems,
// which were made for root alone; nobody else may list them.
func TestDirectoriesLetThrough(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	way := []string{dir, filepath.Join(dir, "agent"), filepath.Join(dir, "agent", "containerd")}
	if err := os.MkdirAll(way[2], 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := newLayout(dir).prepare()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for _, dir := range way {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: mode %v, %v", dir, info.Mode(), err)
		}
	}
}
