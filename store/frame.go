package store

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Servers talk to the leader over one connection each:
//
//	frame = kind(1) length(4, little-endian) payload
//
// The server that dials says hello and is welcomed by the leader; any other
// server says where the leader is, and hangs up.
type frameKind byte

const (
	frameHello    frameKind = iota + 1 // JSON of hello
	frameWelcome                       // JSON of welcome
	framePropose                       // a proposal to put into the log
	frameRefused                       // sequence(8): that proposal never reached the log
	frameRead                          // number(8): which entry must a reader have applied?
	frameReadTo                        // number(8) index(8)
	frameCommit                        // index(8) term(8): committed up to there
	frameMember                        // number(8), JSON of memberRequest
	frameMembered                      // number(8), JSON of memberAnswer
)

// maxFrame bounds what one may make the other allocate. Values are bounded far
// below by the API.
const maxFrame = 256 << 20

// wire is a connection that carries frames.
type wire struct {
	net.Conn
	in *bufio.Reader

	writing sync.Mutex
	header  [5]byte // guarded by writing
}

func newWire(conn net.Conn) *wire { return &wire{Conn: conn, in: bufio.NewReaderSize(conn, 64<<10)} }

// writeTimeout: a server that takes nothing for so long is as good as gone.
const writeTimeout = 5 * time.Second

func (w *wire) write(kind frameKind, payload []byte) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.header[0] = byte(kind)
	binary.LittleEndian.PutUint32(w.header[1:], uint32(len(payload)))
	if err := w.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	// Small frames go out in one piece, big ones without a copy.
	if len(payload) < 4<<10 {
		_, err := w.Write(append(w.header[:], payload...))
		return err
	}
	if _, err := w.Write(w.header[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

// writeNumbers writes a frame of numbers, with rest behind them.
func (w *wire) writeNumbers(kind frameKind, rest []byte, numbers ...uint64) error {
	payload := make([]byte, 0, 8*len(numbers)+len(rest))
	for _, n := range numbers {
		payload = binary.LittleEndian.AppendUint64(payload, n)
	}
	return w.write(kind, append(payload, rest...))
}

func (w *wire) read() (frameKind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(w.in, header[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(header[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	payload := make([]byte, n)
	_, err := io.ReadFull(w.in, payload)
	return frameKind(header[0]), payload, err
}
