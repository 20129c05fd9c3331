package connections

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Frames of HTTP/2 that ask for nothing cost the peer next to nothing and the
// server a little each: RST_STREAM (CVE-2023-44487), SETTINGS, PING, PRIORITY,
// CONTINUATION, empty DATA. A connection may send so many at once, and so many
// a second after that. What sends more ends.
const (
	framesAtOnce = 1000
	framesPerSec = 100
)

// WINDOW_UPDATE is what reading costs: a client sends up to two, for stream and
// connection, for so many bytes that it was sent. Those beyond weigh something.
const (
	bytesPerUpdate     = 2 << 10
	windowUpdateWeight = 0.01
	frameWeight        = 1
)

var errFlood = errors.New("too many HTTP/2 frames that ask for nothing")

const frameHeader = 9 // bytes: 3 length, 1 type, 1 flags, 4 stream

// meter follows the frames in what a client sends.
type meter struct {
	preface int // bytes of the client's preface that are still to come
	payload int // bytes of the frame under way that are still to come
	head    [frameHeader]byte
	have    int // bytes of head

	allowed float64 // how many frames may come now
	counted time.Time

	updates int64        // WINDOW_UPDATE frames so far
	sent    atomic.Int64 // bytes that the client was sent
}

func newMeter(now time.Time) *meter {
	return &meter{preface: len(http2.ClientPreface), allowed: framesAtOnce, counted: now}
}

// read takes notice of bytes that came. It fails when there are too many frames.
func (m *meter) read(p []byte, now func() time.Time) error {
	for len(p) > 0 {
		if skip := min(m.preface+m.payload, len(p)); skip > 0 {
			m.skip(skip)
			p = p[skip:]
			continue
		}
		n := copy(m.head[m.have:], p)
		m.have += n
		p = p[n:]
		if m.have < frameHeader {
			return nil
		}
		m.have = 0
		m.payload = int(m.head[0])<<16 | int(m.head[1])<<8 | int(m.head[2])
		if w := m.weight(); w > 0 && !m.spend(w, now()) {
			return errFlood
		}
	}
	return nil
}

func (m *meter) skip(n int) {
	preface := min(n, m.preface)
	m.preface -= preface
	m.payload -= n - preface
}

// weight is what the frame whose head was read counts.
func (m *meter) weight() float64 {
	switch kind, flags := http2.FrameType(m.head[3]), http2.Flags(m.head[4]); kind {
	case http2.FrameHeaders:
		return 0 // a request, which has limits of its own
	case http2.FrameData:
		if m.payload > 0 || flags.Has(http2.FlagDataEndStream) {
			return 0
		}
	case http2.FrameWindowUpdate:
		if m.updates++; m.updates <= m.sent.Load()/bytesPerUpdate {
			return 0
		}
		return windowUpdateWeight
	}
	return frameWeight
}

func (m *meter) spend(weight float64, now time.Time) bool {
	if m.allowed < weight {
		m.allowed = min(framesAtOnce, m.allowed+now.Sub(m.counted).Seconds()*framesPerSec)
		m.counted = now
	}
	m.allowed -= weight
	return m.allowed >= 0
}

// metered is a connection whose frames are counted.
type metered struct {
	tlsConn
	meter *meter // used by the one goroutine that reads
}

// Read ends the connection when a flood came.
func (c *metered) Read(p []byte) (int, error) {
	n, err := c.tlsConn.Read(p)
	if flood := c.meter.read(p[:n], time.Now); flood != nil {
		c.tlsConn.Close()
		return 0, flood
	}
	return n, err
}

// Write counts what is sent.
func (c *metered) Write(p []byte) (int, error) {
	n, err := c.tlsConn.Write(p)
	c.meter.sent.Add(int64(n))
	return n, err
}

// tlsConn is a *tls.Conn, whose state the HTTP/2 server looks at.
type tlsConn interface {
	net.Conn
	connectionState
}
