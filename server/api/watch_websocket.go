package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/websocket"

	"orch/server/registry"
)

// serveWebSocket sends each event as a message: text for JSON, else binary.
func (c *watcher) serveWebSocket(ctx context.Context, w http.ResponseWriter, r *http.Request, events *registry.Watch) error {
	handler := func(ws *websocket.Conn) {
		defer ws.Close()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var reading sync.WaitGroup
		reading.Go(func() { // a client that goes away is noticed by reading
			io.Copy(io.Discard, ws)
			cancel()
		})
		c.run(ctx, events, func(frames []byte) error {
			c.q.seat.leave()
			ws.SetWriteDeadline(time.Now().Add(stallTime))
			return c.sendMessages(ws, frames)
		})
		ws.Close()
		reading.Wait()
	}
	server := websocket.Server{Handler: handler, Handshake: acceptAnyOrigin}
	server.ServeHTTP(w, r)
	return nil
}

// acceptAnyOrigin skips the check of the Origin header: requests carry
// credentials of their own, not a browser's cookies.
func acceptAnyOrigin(config *websocket.Config, _ *http.Request) error {
	if len(config.Protocol) > 1 {
		config.Protocol = config.Protocol[:1]
	}
	return nil
}

// sendMessages cuts the frames of a batch into messages.
func (c *watcher) sendMessages(ws *websocket.Conn, frames []byte) error {
	for len(frames) > 0 {
		if c.a.media == mediaProtobuf {
			size := 4 + int(binary.BigEndian.Uint32(frames))
			if err := websocket.Message.Send(ws, frames[4:size]); err != nil {
				return err
			}
			frames = frames[size:]
			continue
		}
		end := bytes.IndexByte(frames, '\n') + 1
		if err := websocket.Message.Send(ws, string(frames[:end])); err != nil {
			return err
		}
		frames = frames[end:]
	}
	return nil
}
