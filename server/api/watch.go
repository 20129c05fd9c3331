package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"orch/server/registry"
)

// initialEventsEnd marks the bookmark that ends the initial events.
const initialEventsEnd = metav1.InitialEventsAnnotationKey

// watcher writes the events of one watch to one client. It pulls: while the
// client does not read, nothing is encoded or kept for it.
type watcher struct {
	q       *request
	a       accept
	table   *metav1.TableOptions
	encoded encodingKey
	keys    map[look]frameKey
	buf     *bytes.Buffer // while there is something to send
}

// look is how an event looks to a watch; see registry.WatchEvent.
type look struct {
	event string
	prior bool
}

// key names the frame of an event in this watch's representation.
func (c *watcher) key(event *registry.WatchEvent) frameKey {
	l := look{event.Type, event.Prior}
	k, ok := c.keys[l]
	if !ok {
		named := c.encoded
		named.event, named.prior = l.event, l.prior
		k = unique.Make(named)
		c.keys[l] = k
	}
	return k
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, q *request) error {
	q.verb = "watch"
	a, err := negotiate(r, withTables)
	if err != nil {
		return err
	}
	if a.media == mediaYAML {
		return notAcceptable(contentJSON+";stream=watch", contentProtobuf+";stream=watch")
	}
	sel, opts, err := q.listOptions()
	if err != nil {
		return err
	}
	table, err := q.tableOptions(a)
	if err != nil {
		return err
	}
	ctx, done := s.streams.add(r.Context())
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.watchTimeout(opts))
	defer cancel()
	events, err := s.cfg.Registry.Watch(ctx, q.res, sel, opts)
	if err != nil {
		return err
	}
	defer events.Stop()
	defer s.metrics.watching(q)()
	watcher := &watcher{q: q, a: a, table: table, keys: map[look]frameKey{}}
	watcher.encoded = encodingKey{media: a.media, as: a.as, kind: q.res.GVK()}
	if wsstream.IsWebSocketRequest(r) {
		return watcher.serveWebSocket(ctx, w, r, events)
	}
	return watcher.serve(ctx, w, events)
}

// watchTimeout spreads the ends of watches without a timeout of their own, so
// that clients that started together do not come back together.
func (s *Server) watchTimeout(opts *metav1.ListOptions) time.Duration {
	if opts.TimeoutSeconds != nil && *opts.TimeoutSeconds > 0 {
		return time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	return time.Duration(float64(s.cfg.MinWatch) * (1 + rand.Float64()))
}

// serve streams frames over the response until the watch or the client ends.
func (c *watcher) serve(ctx context.Context, w http.ResponseWriter, events *registry.Watch) error {
	contentType := contentJSON
	if c.a.media == mediaProtobuf {
		contentType = contentProtobuf + ";stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	flusher.Flush()
	c.run(ctx, events, func(frames []byte) error {
		if _, err := writePieces(w, frames); err != nil {
			return err
		}
		return flusher.Flush()
	})
	return nil
}

// chunk is about how much is sent at once.
const chunk = 64 << 10

// gather is how long a watch that has just sent twice waits for more events. In
// a storm of writes each watch would else wake up for every few of them, and
// waking, framing, encrypting and the system call cost more than the events. The
// first events after a quiet time wait for nobody.
const gather = 10 * time.Millisecond

// run pulls batches of events and sends their frames together.
func (c *watcher) run(ctx context.Context, events *registry.Watch, send func(frames []byte) error) {
	pause := time.NewTimer(gather)
	defer pause.Stop()
	for sent := (time.Time{}); ; {
		batch, err := events.Next(ctx)
		if c.sendBatch(ctx, batch, err, send) != nil {
			return
		}
		if time.Since(sent) < gather {
			pause.Reset(gather)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
		sent = time.Now()
	}
}

// sendBatch sends the events, or tells why there are none. Most watches are
// idle, so only those with something to say have a buffer.
func (c *watcher) sendBatch(ctx context.Context, batch []registry.WatchEvent, err error, send func(frames []byte) error) error {
	c.buf = getBuffer()
	defer func() { putBuffer(c.buf); c.buf = nil }()
	if len(batch) > 0 && !c.shares(&batch[0]) {
		// Encoding the objects that were there before the watch is work as a list
		// is. The seat is given up as soon as something is written.
		if err := c.q.seat.retake(ctx); err != nil {
			return err
		}
		defer c.q.seat.leave()
	}
	for i := range batch {
		var large []byte
		if large, err = c.append(&batch[i]); err != nil {
			break
		}
		if c.buf.Len() < chunk && large == nil {
			continue
		}
		if err := c.flush(send, large); err != nil {
			return err
		}
	}
	if err != nil && ctx.Err() == nil {
		c.appendError(err)
	}
	return errors.Join(c.flush(send, nil), err)
}

// ownBytes is how large a buffer of its own a watch may have while it waits for
// its client before that counts on top of watchBytes.
const ownBytes = 16 << 10

// flush sends what is gathered, and after it a frame that is too large for that.
func (c *watcher) flush(send func(frames []byte) error, large []byte) error {
	if c.buf.Len() > 0 {
		own := int64(c.buf.Cap())
		if own > ownBytes {
			if err := c.q.hold(own); err != nil {
				return err
			}
			defer c.q.release(own)
		}
		if err := send(c.buf.Bytes()); err != nil {
			return err
		}
		c.buf.Reset()
	}
	if large == nil {
		return nil
	}
	return send(large)
}

// shares tells whether the event's frame is the same for all watches that show it
// alike.
func (c *watcher) shares(event *registry.WatchEvent) bool {
	return event.Event != nil && c.a.as.Kind != "Table"
}

// append adds the frame of one event. A large one is not copied but returned:
// all watches that wait for their clients have it in common.
func (c *watcher) append(event *registry.WatchEvent) (large []byte, err error) {
	if event.Type == "BOOKMARK" {
		return nil, c.appendFrame(c.buf, event.Type, c.bookmark(event))
	}
	if !c.shares(event) {
		return nil, c.appendFrame(c.buf, event.Type, event.Object)
	}
	cell := event.Event.Memo.Get(c.key(event), func() any { return new(cell) }).(*cell)
	frame, err := cell.get(func() ([]byte, error) {
		buf := getBuffer()
		defer putBuffer(buf)
		err := c.appendFrame(buf, event.Type, event.Object)
		return bytes.Clone(buf.Bytes()), err
	})
	if len(frame) >= chunk/4 {
		return frame, err
	}
	c.buf.Write(frame)
	return nil, err
}

func (c *watcher) bookmark(event *registry.WatchEvent) registry.Object {
	obj := c.q.res.New()
	obj.SetResourceVersion(formatRevision(event.ResourceVersion))
	if event.InitialEnd {
		obj.SetAnnotations(map[string]string{initialEventsEnd: "true"})
	}
	return obj
}

// appendFrame encodes an event and its object for the wire.
func (c *watcher) appendFrame(buf *bytes.Buffer, event string, obj registry.Object) error {
	var what runtime.Object = obj
	gvk := c.q.res.GVK()
	switch c.a.as.Kind {
	case "Table":
		table, err := newTable(c.q.rows(), c.a.as, c.table, time.Now(), obj)
		if err != nil {
			return err
		}
		table.ResourceVersion = obj.GetResourceVersion()
		if event == "BOOKMARK" {
			table.ColumnDefinitions, table.Rows[0].Cells = nil, make([]any, len(table.Rows[0].Cells))
		} else {
			c.table.NoHeaders = true // the first event alone has them
		}
		what, gvk = table, c.a.as
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		gvk = c.a.as.GroupVersion().WithKind("PartialObjectMetadata")
		what = partial(obj, c.a.as)
	}
	if c.a.media == mediaProtobuf {
		return appendProtobufFrame(buf, event, func(buf *bytes.Buffer) error { return appendProtobuf(buf, gvk, what) })
	}
	return appendJSONFrame(buf, event, func(buf *bytes.Buffer) error { return appendJSON(buf, gvk, what) })
}

// appendError tells why the watch ends.
func (c *watcher) appendError(err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	status := statusOf(err)
	if c.a.media == mediaProtobuf {
		appendProtobufFrame(c.buf, "ERROR", func(buf *bytes.Buffer) error { return appendProtobuf(buf, statusKind, status) })
		return
	}
	appendJSONFrame(c.buf, "ERROR", func(buf *bytes.Buffer) error { return appendJSON(buf, statusKind, status) })
}

func appendJSONFrame(buf *bytes.Buffer, event string, object func(*bytes.Buffer) error) error {
	start := buf.Len()
	buf.WriteString(`{"type":"`)
	buf.WriteString(event)
	buf.WriteString(`","object":`)
	if err := object(buf); err != nil {
		buf.Truncate(start)
		return err
	}
	buf.WriteString("}\n")
	return nil
}

// appendProtobufFrame writes the length, in four bytes, of a WatchEvent
// message, whose object is a RawExtension around the enveloped object.
func appendProtobufFrame(buf *bytes.Buffer, event string, object func(*bytes.Buffer) error) error {
	inner := getBuffer()
	defer putBuffer(inner)
	if err := object(inner); err != nil {
		return err
	}
	size := inner.Len()
	extension := 1 + varintSize(size) + size
	b := binary.BigEndian.AppendUint32(buf.AvailableBuffer(), uint32(2+len(event)+1+varintSize(extension)+extension))
	b = appendField(b, 1, event)
	b = binary.AppendUvarint(append(b, 2<<3|2), uint64(extension))
	b = binary.AppendUvarint(append(b, 1<<3|2), uint64(size))
	buf.Write(b)
	buf.Write(inner.Bytes())
	return nil
}
