package serve

import (
	"io"
	"net"
	"sync"
)

// readerConn is a connection whose first bytes were read into a buffer.
type readerConn struct {
	net.Conn
	reader io.Reader
}

func (c *readerConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// CloseWrite passes a half-close on where the connection has one.
func (c *readerConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// splice copies both ways until both sides have ended. The end of one
// direction is passed on, so that a request body may end before the answer.
func splice(a, b net.Conn) {
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // either side may break off
		_ = closeWrite(to)
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	both.Wait()
}
