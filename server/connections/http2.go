package connections

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/net/http2"
)

type connectionState interface{ ConnectionState() tls.ConnectionState }

// Deadlines and limits of the server's port. A request or its answer that takes
// longer needs a deadline of its own, by http.ResponseController.
const (
	headerTime = 8 * time.Second  // TLS handshake, or the header of a request
	readTime   = 8 * time.Second  // header and body
	writeTime  = 90 * time.Second // header, body, work and answer
	idleTime   = 3 * time.Minute
	maxHeader  = 256 << 10

	// Streams of one HTTP/2 connection at once, as upstream has them. Clients
	// that want more open further connections.
	maxStreams = 250
	// What a client may send of bodies before somebody reads them.
	streamBuffer, connBuffer = 256 << 10, 1 << 20
	// A connection that takes no bytes at all for so long ends.
	stuckTime = 20 * time.Second
	pingAfter = time.Minute // of silence
)

// Configure gives the server its deadlines, and HTTP/2 that counts frames.
// TLSConfig must be set; other protocols may be added to TLSNextProto.
func Configure(server *http.Server) error {
	server.ReadHeaderTimeout, server.ReadTimeout = headerTime, readTime
	server.WriteTimeout, server.IdleTimeout = writeTime, idleTime
	server.MaxHeaderBytes = maxHeader
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server.Protocols = protocols
	h2 := &http2.Server{
		MaxConcurrentStreams:     maxStreams,
		MaxUploadBufferPerStream: streamBuffer, MaxUploadBufferPerConnection: connBuffer,
		IdleTimeout: idleTime, ReadIdleTimeout: pingAfter, WriteByteTimeout: stuckTime,
	}
	if err := http2.ConfigureServer(server, h2); err != nil {
		return fmt.Errorf("configure HTTP/2: %w", err)
	}
	server.TLSNextProto[http2.NextProtoTLS] = func(server *http.Server, conn *tls.Conn, handler http.Handler) {
		h2.ServeConn(&metered{conn, newMeter(time.Now())}, &http2.ServeConnOpts{
			Context: contextOf(handler), Handler: handler, BaseConfig: server,
		})
	}
	return nil
}

// contextOf is the connection's context, which net/http gives to HTTP/2 by a
// method of the handler.
func contextOf(handler http.Handler) context.Context {
	if h, ok := handler.(interface{ BaseContext() context.Context }); ok {
		return h.BaseContext()
	}
	return context.Background()
}
