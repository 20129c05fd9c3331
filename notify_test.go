package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
)

func TestNotifyReady(t *testing.T) {
	for name, socket := range map[string]string{"path": filepath.Join(t.TempDir(), "s"), "abstract": "@orch-" + filepath.Base(t.TempDir())} {
		t.Setenv("NOTIFY_SOCKET", socket)
		conn, err := net.ListenPacket("unixgram", socket)
		if err != nil {
			t.Fatal(err)
		}
		notifyReady(slog.New(slog.DiscardHandler))
		buffer := make([]byte, 64)
		n, _, err := conn.ReadFrom(buffer)
		if err != nil || string(buffer[:n]) != "READY=1\n" {
			t.Errorf("%s: %q %v", name, buffer[:n], err)
		}
		conn.Close()
	}
}
