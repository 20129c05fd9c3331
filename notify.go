package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// notifyReady tells the service manager that orch is up, if one asked for it;
// see sd_notify(3).
func notifyReady(log *slog.Logger) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	if name, abstract := strings.CutPrefix(socket, "@"); abstract {
		socket = "\x00" + name
	}
	conn, err := net.Dial("unixgram", socket)
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte("READY=1\n"))
	}
	if err != nil {
		log.Warn("cannot tell the service manager that orch is ready", "err", err)
	}
}

// readyMark is the file that is there from when the node became ready until orch
// starts again: for who starts orch without a service manager, as install.sh does.
type readyMark string

func readyMarkIn(dataDir string) readyMark {
	return readyMark(filepath.Join(dataDir, "agent", "ready"))
}

func (m readyMark) remove() error {
	if err := os.Remove(string(m)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (m readyMark) make(log *slog.Logger) {
	if err := os.WriteFile(string(m), nil, 0o644); err != nil {
		log.Warn("cannot leave the file that says that the node is ready", "err", err)
	}
}
