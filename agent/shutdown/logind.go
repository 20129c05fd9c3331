package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// Of https://www.freedesktop.org/wiki/Software/systemd/inhibit and
// org.freedesktop.login1(5).
const (
	loginName    = "org.freedesktop.login1"
	loginPath    = "/org/freedesktop/login1"
	loginManager = "org.freedesktop.login1.Manager"
	confName     = "99-orch.conf" // removed by orch-uninstall.sh
)

// reconnect is the pause before a bus that went away is looked for again.
const reconnect = 10 * time.Second

// keepLogind follows logind until ctx ends. A machine without it does not tell
// of its end; there Asked is the only way.
func (m *Manager) keepLogind(ctx context.Context) error {
	for known := false; ; {
		l, err := m.openLogind(ctx)
		if err == nil {
			known = true
			err = m.followLogind(ctx, l)
			l.close()
		}
		if ctx.Err() != nil {
			return nil
		}
		if !known {
			m.log.Debug("no logind tells of the machine's shutdown", "err", err)
			<-ctx.Done()
			return nil
		}
		m.log.Warn("logind cannot be reached; trying again", "err", err)
		select {
		case <-time.After(reconnect):
		case <-ctx.Done():
			return nil
		}
	}
}

// logind is a connection to it, and the lock that holds back the shutdown.
type logind struct {
	bus     *dbus.Conn
	signals chan *dbus.Signal
	lock    *os.File // nil: the machine may go down
}

func (m *Manager) openLogind(ctx context.Context) (*logind, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to D-Bus: %w", err)
	}
	l := &logind{bus: bus, signals: make(chan *dbus.Signal, 16)}
	if err := l.prepare(ctx, m); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *logind) prepare(ctx context.Context, m *Manager) error {
	l.bus.Signal(l.signals)
	match := []dbus.MatchOption{dbus.WithMatchInterface(loginManager), dbus.WithMatchMember("PrepareForShutdown")}
	if err := l.bus.AddMatchSignalContext(ctx, match...); err != nil {
		return fmt.Errorf("wait for logind's signals: %w", err)
	}
	delay, err := l.delay()
	if err != nil {
		return err
	}
	if delay < m.cfg.Period {
		if err := l.lengthen(ctx, m.cfg.LogindConf, m.cfg.Period); err != nil {
			m.log.Warn("pods have less time to end than --shutdown-grace-period: set InhibitDelayMaxSec in logind.conf(5)", "time", delay, "err", err)
		}
	}
	return l.inhibit(ctx)
}

// close lets the machine go down as far as it is up to this node.
func (l *logind) close() {
	l.release()
	_ = l.bus.Close()
}

func (l *logind) login() dbus.BusObject { return l.bus.Object(loginName, loginPath) }

// delay is how long logind lets a shutdown be held back.
func (l *logind) delay() (time.Duration, error) {
	property, err := l.login().GetProperty(loginManager + ".InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("ask logind for its longest delay: %w", err)
	}
	microseconds, ok := property.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("logind's longest delay is %v", property)
	}
	return time.Duration(microseconds) * time.Microsecond, nil
}

// lengthen makes logind wait as long as pods may take.
func (l *logind) lengthen(ctx context.Context, dir string, period time.Duration) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	content := fmt.Sprintf("# Written by orch, for --shutdown-grace-period.\n[Login]\nInhibitDelayMaxSec=%.0f\n", period.Seconds())
	if err := os.WriteFile(filepath.Join(dir, confName), []byte(content), 0o644); err != nil {
		return err
	}
	systemd := l.bus.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	call := systemd.CallWithContext(ctx, "org.freedesktop.systemd1.Manager.KillUnit", 0, "systemd-logind.service", "all", int32(syscall.SIGHUP))
	if call.Err != nil {
		return fmt.Errorf("make logind read its configuration: %w", call.Err)
	}
	return nil
}

// inhibit holds back a shutdown for as long as logind lets us.
func (l *logind) inhibit(ctx context.Context) error {
	var fd dbus.UnixFD
	call := l.login().CallWithContext(ctx, loginManager+".Inhibit", 0, "shutdown", "orch", "pods are stopped in order", "delay")
	if err := call.Store(&fd); err != nil {
		return fmt.Errorf("hold back shutdowns: %w", err)
	}
	l.release()
	l.lock = os.NewFile(uintptr(fd), "inhibitor")
	return nil
}

func (l *logind) release() {
	if l.lock != nil {
		_ = l.lock.Close() // closing is what releases it
		l.lock = nil
	}
}

func (m *Manager) followLogind(ctx context.Context, l *logind) error {
	for {
		select {
		case signal, open := <-l.signals:
			if !open {
				return errors.New("the bus went away")
			}
			if err := m.heed(ctx, l, signal); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Manager) heed(ctx context.Context, l *logind, signal *dbus.Signal) error {
	if signal.Name != loginManager+".PrepareForShutdown" || len(signal.Body) != 1 {
		return nil
	}
	if down, _ := signal.Body[0].(bool); down {
		m.begin("logind says so")
		m.endPods(ctx)
		l.release()
		return nil
	}
	m.callOff()
	return l.inhibit(ctx)
}
