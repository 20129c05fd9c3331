package shutdown

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
)

// machine is pods that end when they are stopped, unless they are stubborn, and
// a record of what happens.
type machine struct {
	mu      sync.Mutex
	pods    []Pod
	stays   map[types.UID]bool
	story   []string
	changes chan bool
}

func newMachine(pods ...Pod) *machine {
	return &machine{pods: slices.Clone(pods), stays: map[types.UID]bool{}, changes: make(chan bool, 8)}
}

func (m *machine) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.story = append(m.story, fmt.Sprintf(format, args...))
}

func (m *machine) told() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.story)
}

func (m *machine) config() Config {
	return Config{
		Period: 2 * time.Second, CriticalPeriod: time.Second, Logger: slog.New(slog.DiscardHandler),
		Pods: func() []Pod {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Clone(m.pods)
		},
		Stop: func(uid types.UID, grace time.Duration) {
			m.note("stop %s in %s", uid, grace)
			m.mu.Lock()
			defer m.mu.Unlock()
			for i := range m.pods {
				if m.pods[i].UID == uid && !m.stays[uid] {
					m.pods[i].Running = false
				}
			}
		},
		Changed: func(underWay bool) { m.changes <- underWay },
		Known:   func() bool { return true },
		Settle:  func(context.Context) { m.note("settled") },
	}
}

var pods = []Pod{
	{UID: "dns", Grace: 30 * time.Second, Critical: true, Running: true},
	{UID: "web", Grace: 30 * time.Second, Running: true},
	{UID: "quick", Grace: 500 * time.Millisecond, Running: true},
	{UID: "done", Grace: time.Second},
}

func TestAsked(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	m := newMachine(pods...)
	m.stays["web"] = true // its time runs out, and the critical pod's begins
	cfg, asked := m.config(), make(chan os.Signal, 1)
	cfg.Asked = asked
	asked <- syscall.SIGPWR
	manager := New(cfg)
	if err := manager.Run(t.Context()); !errors.Is(err, ErrDone) {
		t.Errorf("Run gives %v", err)
	}
	want := "stop web in 1s, stop quick in 500ms, stop dns in 1s, settled"
	if story := strings.Join(m.told(), ", "); story != want {
		t.Errorf("%s\nwant %s", story, want)
	}
	if !<-m.changes || !manager.UnderWay() {
		t.Error("the node does not count as shutting down")
	}
}

// login is a logind of the test's own, on a bus of its own.
type login struct {
	*machine
	bus   *dbus.Conn
	locks chan *os.File // the test's ends: reading gives EOF when a lock is released
}

func (l *login) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.note("lock %s %s %s", what, who, mode)
	l.locks <- read
	fd, err := syscall.Dup(int(write.Fd()))
	write.Close()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	// The library sends a copy; ours must not keep the lock.
	time.AfterFunc(time.Second, func() { _ = syscall.Close(fd) })
	return dbus.UnixFD(fd), nil
}

func (l *login) Get(_, name string) (dbus.Variant, *dbus.Error) {
	return dbus.MakeVariant(uint64(500_000)), nil // InhibitDelayMaxUSec
}

func (l *login) KillUnit(unit, who string, signal int32) *dbus.Error {
	l.note("kill %s %s %d", unit, who, signal)
	return nil
}

// newLogin starts a bus and the logind on it.
func newLogin(t *testing.T) *login {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("dbus-daemon is not installed (make prerequisites): nothing stands in for logind")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	content := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path=` + dir + `/bus</listen>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow user="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
	l := &login{machine: newMachine(pods...), locks: make(chan *os.File, 4)}
	if l.bus, err = dbus.ConnectSystemBus(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.bus.Close() })
	for _, export := range []struct{ path, face string }{
		{loginPath, loginManager}, {loginPath, "org.freedesktop.DBus.Properties"}, {"/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"},
	} {
		if err := l.bus.Export(l, dbus.ObjectPath(export.path), export.face); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{loginName, "org.freedesktop.systemd1"} {
		if reply, err := l.bus.RequestName(name, 0); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
			t.Fatalf("own %s: %v %v", name, reply, err)
		}
	}
	return l
}

func (l *login) goDown(t *testing.T, down bool) {
	t.Helper()
	if err := l.bus.Emit(loginPath, loginManager+".PrepareForShutdown", down); err != nil {
		t.Fatal(err)
	}
}

// The machine's logind is told to wait, waits until the pods have ended, and may
// call it off.
func TestLogind(t *testing.T) {
	l := newLogin(t)
	cfg := l.config()
	cfg.LogindConf = filepath.Join(t.TempDir(), "logind.conf.d")
	manager := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var running errgroup.Group
	running.Go(func() error { return manager.Run(ctx) })
	lock := <-l.locks
	conf, err := os.ReadFile(filepath.Join(cfg.LogindConf, confName))
	if err != nil || !strings.Contains(string(conf), "InhibitDelayMaxSec=2\n") {
		t.Errorf("logind's configuration: %s %v", conf, err)
	}
	if manager.UnderWay() {
		t.Error("under way before anything was said")
	}
	l.goDown(t, true)
	if !<-l.changes {
		t.Error("called off instead of begun")
	}
	if _, err := lock.Read(make([]byte, 1)); err == nil {
		t.Error("the lock is a file with content")
	} // it is released
	want := "kill systemd-logind.service all 1, lock shutdown orch delay, stop web in 1s, stop quick in 500ms, stop dns in 1s, settled"
	if story := strings.Join(l.told(), ", "); story != want {
		t.Errorf("%s\nwant %s", story, want)
	}
	l.goDown(t, false)
	if <-l.changes || manager.UnderWay() {
		t.Error("not called off")
	}
	<-l.locks // taken anew
	cancel()
	if err := running.Wait(); err != nil {
		t.Error(err)
	}
}
