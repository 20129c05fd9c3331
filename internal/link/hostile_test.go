package link

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"orch/internal/pki"
)

// linked is a node's connection, to do with what it likes.
func linked(t *testing.T, w *world, node string) *tls.Conn {
	t.Helper()
	config := w.tls(t, pki.NodeClientProfile(node))
	config.NextProtos = []string{Protocol}
	conn, err := tls.Dial("tcp", w.address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Streams go from servers to nodes: a node that opens one is cut off.
func TestNodeOpensNoStreams(t *testing.T) {
	w := newWorld(t)
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Server(linked(t, w, "n1"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for range 2000 {
		stream, err := session.OpenStream()
		if err != nil {
			break
		}
		if _, err := stream.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	<-session.CloseChan()
}

// Pings without end, whose answers nobody reads, end the link.
func TestNodePings(t *testing.T) {
	w := newWorld(t)
	conn := linked(t, w, "n1")
	ping := []byte{0, framePing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}
	for i := 0; ; i++ {
		if _, err := conn.Write(ping); err != nil {
			return
		}
		if i == 1_000_000 {
			t.Fatal("still open")
		}
	}
}

// FuzzMetered reads anything; however the bytes are cut, it comes to the same.
func FuzzMetered(f *testing.F) {
	f.Add(append([]byte{0, frameData, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3}, "abc"...))
	f.Add(bytes.Repeat([]byte{0, framePing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, pieces := newMetered(nil), newMetered(nil)
		whole.counted = time.Time{}
		first, second := whole.follow(data), true
		for i := 0; i < len(data) && second; i++ {
			second = pieces.follow(data[i : i+1])
		}
		if first && second && fmt.Sprint(whole.head, whole.have, whole.payload) != fmt.Sprint(pieces.head, pieces.have, pieces.payload) {
			t.Errorf("%+v, byte by byte %+v", whole, pieces)
		}
	})
}
