package runtime

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"

	"github.com/sirupsen/logrus"
)

// redirectLog sends c's warnings to logger; what containerd would end the
// process for fails c. Its logger is global: so is this.
func redirectLog(logger *slog.Logger, c *containerd) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.WarnLevel)
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(&logHook{logger: logger, server: c})
	std.ExitFunc = func(int) {} // the hook has told Run
}

// logHook passes logrus entries on to slog.
type logHook struct {
	logger *slog.Logger
	server *containerd
}

func (h *logHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h *logHook) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	if expected(e.Message) || h.server.stopping.Load() {
		level = slog.LevelDebug
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		if k == logrus.ErrorKey {
			k = "err"
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	h.logger.LogAttrs(context.Background(), level, e.Message, attrs...)
	if e.Level <= logrus.FatalLevel {
		h.server.fail(fmt.Errorf("%s: %v", e.Message, e.Data[logrus.ErrorKey]))
	}
	return nil
}

// answered matches what the CRI logs about a call whose caller gets the error.
var answered = regexp.MustCompile(`^[A-Z][A-Za-z]+( .*)? failed(, error)?$`)

// expected tells of messages that containerd warns with although the caller is
// told anyway, or they are part of how orch uses it or of an ordinary day.
func expected(message string) bool {
	if answered.MatchString(message) {
		return true
	}
	for _, part := range []string{
		"`configs` is deprecated",             // credentials have no other place
		"failed to load cni during init",      // the network comes up after us
		"fsverity support",                    // few file systems have it
		"cleaning up after shim disconnected", // end of every pod
		"cleanup warnings",
		"get state for",                               // race with an exit
		"Failed to get usage for snapshot",            // race with its removal
		"Failed to redirect stdin for container exec", // a command that did not read its input
		"Failed to close stdin for container exec",
	} {
		if strings.Contains(message, part) {
			return true
		}
	}
	return false
}
