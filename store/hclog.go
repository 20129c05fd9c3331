package store

import (
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes on what raft warns of. Until the first reign it stays
// quiet: that a new server finds no leader and elects itself is no news.
type raftLogger struct {
	hclog.Logger // discards everything
	to           *slog.Logger
	loud         *atomic.Bool
}

func newRaftLogger(to *slog.Logger) *raftLogger {
	return &raftLogger{Logger: hclog.NewNullLogger(), to: to, loud: new(atomic.Bool)}
}

func (l *raftLogger) Warn(message string, args ...any) {
	if l.loud.Load() {
		l.to.Warn("raft: "+message, args...)
		return
	}
	l.to.Debug("raft: "+message, args...)
}

func (l *raftLogger) Error(message string, args ...any) {
	for _, arg := range args {
		if err, ok := arg.(error); ok && errors.Is(err, net.ErrClosed) { // by us, as the server stops
			l.to.Debug("raft: "+message, args...)
			return
		}
	}
	l.to.Error("raft: "+message, args...)
}

func (l *raftLogger) Log(level hclog.Level, message string, args ...any) {
	switch {
	case level >= hclog.Error:
		l.Error(message, args...)
	case level == hclog.Warn:
		l.Warn(message, args...)
	}
}

func (l *raftLogger) IsWarn() bool  { return true }
func (l *raftLogger) IsError() bool { return true }

func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{Logger: l.Logger, to: l.to.With(args...), loud: l.loud}
}

func (l *raftLogger) Named(string) hclog.Logger      { return l }
func (l *raftLogger) ResetNamed(string) hclog.Logger { return l }

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
