package abuse

import (
	"bytes"
	"crypto/tls"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames speaks HTTP/2 frame by frame, as clients should not.
type frames struct {
	conn   *tls.Conn
	framer *http2.Framer
	head   bytes.Buffer
	hpack  *hpack.Encoder
	token  string
	next   uint32
}

// frames connects; each stream may receive window bytes. Nil: turned away.
func (a *attacker) frames(window uint32) *frames {
	conn := a.dial("h2")
	if conn == nil {
		return nil
	}
	f := &frames{conn: conn, framer: http2.NewFramer(conn, conn), token: a.Token, next: 1}
	f.hpack = hpack.NewEncoder(&f.head)
	_, err := io.WriteString(conn, http2.ClientPreface)
	if err == nil {
		err = f.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	}
	if err != nil {
		a.note("turned away", 0)
		conn.Close()
		return nil
	}
	return f
}

// request starts a request; open: a body is promised.
func (f *frames) request(method, path string, open bool) (stream uint32, err error) {
	f.head.Reset()
	fields := [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "x"}, {":path", path}, {"content-type", "application/json"}}
	if f.token != "" {
		fields = append(fields, [2]string{"authorization", "Bearer " + f.token})
	}
	for _, field := range fields {
		if err := f.hpack.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return 0, err
		}
	}
	stream = f.next
	f.next += 2
	return stream, f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.head.Bytes(), EndStream: !open, EndHeaders: true})
}

// flood sends frames until the connection ends, as it must.
func flood(send func(f *frames, i uint32) error) func(*attacker) {
	const enough = 20 * time.Second
	return func(a *attacker) {
		for a.ctx.Err() == nil {
			f := a.frames(65535)
			if f == nil {
				continue
			}
			began := time.Now()
			var err error
			for i := uint32(0); err == nil && time.Since(began) < enough; i++ {
				err = send(f, i)
			}
			if err == nil {
				a.problem("a connection bears the flood for %v", enough)
			}
			a.note("connection ended", 0)
			f.conn.Close()
		}
	}
}
