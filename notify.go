package main

import (
	"log/slog"
	"net"
	"os"
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
