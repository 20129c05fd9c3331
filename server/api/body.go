package api

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// gzipThreshold is the size from which responses are compressed.
const gzipThreshold = 128 * 1024

var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return w
}}

// body writes a response whose size may not be known yet. Up to the gzip
// threshold it holds the bytes back, so that small answers stay plain and get
// a Content-Length.
type body struct {
	w       http.ResponseWriter
	code    int
	content string
	zip     *gzip.Writer
	wanted  bool // the client takes gzip
	held    []byte
	started bool
}

func newBody(w http.ResponseWriter, r *http.Request, code int, contentType string) *body {
	return &body{w: w, code: code, content: contentType, wanted: gzipWanted(r)}
}

// gzipWanted is false for clients on this machine: bandwidth costs nothing
// there and compression would cost them and us.
func gzipWanted(r *http.Request) bool {
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		return false
	}
	remote, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return true
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if host, _, err := net.SplitHostPort(local.String()); err == nil && host == remote {
			return false
		}
	}
	return !net.ParseIP(remote).IsLoopback()
}

func (b *body) Write(p []byte) (int, error) {
	if b.started {
		return b.write(p)
	}
	if b.wanted && len(b.held)+len(p) <= gzipThreshold {
		b.held = append(b.held, p...)
		return len(p), nil
	}
	b.start(b.wanted)
	if len(b.held) > 0 {
		if _, err := b.write(b.held); err != nil {
			return 0, err
		}
		b.held = nil
	}
	return b.write(p)
}

// writeOn writes p, and returns when there is a seat to make more. Where there
// will be none, only breaking off tells the client, for the header is out.
func (b *body) writeOn(r *http.Request, p []byte) {
	_, err := b.Write(p)
	if answer, ok := b.w.(*answerWriter); ok && err == nil {
		err = answer.seat.retake(r.Context())
	}
	if err != nil || r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

func (b *body) start(compress bool) {
	b.started = true
	h := b.w.Header()
	h.Set("Content-Type", b.content)
	if compress {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		b.zip = gzipWriters.Get().(*gzip.Writer)
		b.zip.Reset(b.w)
	}
	b.w.WriteHeader(b.code)
}

func (b *body) write(p []byte) (int, error) {
	if b.zip != nil {
		return b.zip.Write(p)
	}
	return writePieces(b.w, p)
}

// piece is what goes out in one HTTP/2 frame that with its head fills one TLS
// record. A full frame would need a second record, and a system call more on
// either side, for its last nine bytes.
const piece = 16<<10 - 9

func writePieces(w io.Writer, p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		var written int
		written, err = w.Write(p[n:min(n+piece, len(p))])
		n += written
	}
	return n, err
}

func (b *body) Close() error {
	if !b.started {
		b.start(false)
		_, err := writePieces(b.w, b.held)
		return err
	}
	if b.zip == nil {
		return nil
	}
	err := b.zip.Close()
	b.zip.Reset(nil)
	gzipWriters.Put(b.zip)
	b.zip = nil
	return err
}
