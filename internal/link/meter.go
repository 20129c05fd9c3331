package link

import (
	"errors"
	"net"
	"time"
)

// Every ping of the peer makes yamux start a goroutine, which lives until its
// answer is sent: who sends pings without end and reads nothing would fill the
// memory. The other kinds of frames are bounded by the streams' windows.
const (
	pingsAtOnce = 100
	pingEvery   = time.Second
)

var errPings = errors.New("too many pings came over the link")

// Frames of yamux: 12 bytes of header (version, type, flags, stream, length),
// and as many bytes as a data frame says.
const (
	frameHeader = 12
	frameData   = 0
	framePing   = 2
)

// metered is a connection with yamux on it whose pings are counted. One
// goroutine reads it.
type metered struct {
	net.Conn
	head    [frameHeader]byte
	have    int   // bytes of head
	payload int64 // bytes of the data frame under way that are still to come

	pings   float64 // how many may come now
	counted time.Time
}

func newMetered(conn net.Conn) *metered {
	return &metered{Conn: conn, pings: pingsAtOnce, counted: time.Now()}
}

// Read ends the connection when too many pings came.
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if !m.follow(p[:n]) {
		m.Conn.Close()
		return 0, errPings
	}
	return n, err
}

// follow takes notice of bytes that came; false: they are too many pings.
func (m *metered) follow(p []byte) bool {
	for len(p) > 0 {
		if m.payload > 0 {
			skip := min(m.payload, int64(len(p)))
			m.payload -= skip
			p = p[skip:]
			continue
		}
		n := copy(m.head[m.have:], p)
		p = p[n:]
		if m.have += n; m.have < frameHeader {
			return true
		}
		m.have = 0
		switch m.head[1] {
		case frameData:
			m.payload = int64(m.head[8])<<24 | int64(m.head[9])<<16 | int64(m.head[10])<<8 | int64(m.head[11])
		case framePing:
			if !m.ping(time.Now()) {
				return false
			}
		}
	}
	return true
}

func (m *metered) ping(now time.Time) bool {
	m.pings = min(pingsAtOnce, m.pings+now.Sub(m.counted).Seconds()/pingEvery.Seconds())
	m.counted = now
	m.pings--
	return m.pings >= 0
}
