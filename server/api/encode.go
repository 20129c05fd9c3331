package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"net/http"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// buffers are reused between responses; large ones are left to the collector.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxPooled = 1 << 20

func getBuffer() *bytes.Buffer {
	b := buffers.Get().(*bytes.Buffer)
	b.Reset()
	return b
}

func putBuffer(b *bytes.Buffer) {
	if b.Cap() <= maxPooled {
		buffers.Put(b)
	}
}

// respond writes one object. gvk names it when the object does not itself.
func (s *Server) respond(w http.ResponseWriter, r *http.Request, a accept, code int, obj runtime.Object, gvk schema.GroupVersionKind) {
	buf := getBuffer()
	defer putBuffer(buf)
	if err := appendObject(buf, a, gvk, obj); err != nil {
		if gvk == statusKind {
			panic(err)
		}
		s.fail(w, r, err)
		return
	}
	body := newBody(w, r, code, a.media.contentType())
	body.Write(buf.Bytes())
	body.Close()
}

// appendObject writes obj in the representation a, with its kind.
func appendObject(buf *bytes.Buffer, a accept, gvk schema.GroupVersionKind, obj runtime.Object) error {
	switch a.media {
	case mediaProtobuf:
		return appendProtobuf(buf, gvk, obj)
	case mediaYAML:
		return appendVia(buf, yaml.JSONToYAML, gvk, obj)
	}
	if a.pretty {
		return appendVia(buf, indent, gvk, obj)
	}
	if err := appendJSON(buf, gvk, obj); err != nil {
		return err
	}
	return buf.WriteByte('\n')
}

func appendVia(buf *bytes.Buffer, convert func([]byte) ([]byte, error), gvk schema.GroupVersionKind, obj runtime.Object) error {
	compact := getBuffer()
	defer putBuffer(compact)
	if err := appendJSON(compact, gvk, obj); err != nil {
		return err
	}
	out, err := convert(compact.Bytes())
	if err != nil {
		return err
	}
	_, err = buf.Write(out)
	return err
}

func indent(compact []byte) ([]byte, error) {
	var out bytes.Buffer
	err := json.Indent(&out, compact, "", "  ")
	return out.Bytes(), err
}

// appendJSON writes obj without a newline. Shared objects carry no kind, and
// may not be changed to carry one, so the kind is written in front.
func appendJSON(buf *bytes.Buffer, gvk schema.GroupVersionKind, obj any) error {
	start := buf.Len()
	appendKind(buf, gvk)
	at := buf.Len()
	if err := json.NewEncoder(buf).Encode(obj); err != nil {
		buf.Truncate(start)
		return err
	}
	buf.Truncate(buf.Len() - 1)
	out := buf.Bytes()
	switch own := out[at:]; {
	case carriesKind(own):
		n := copy(out[start:], own)
		buf.Truncate(start + n)
	case len(own) == 2: // "{}"
		out[at] = '}'
		buf.Truncate(buf.Len() - 1)
	default:
		own[0] = ','
	}
	return nil
}

// appendKind writes `{"kind":"Pod","apiVersion":"v1"`.
func appendKind(buf *bytes.Buffer, gvk schema.GroupVersionKind) {
	b := buf.AvailableBuffer()
	b = append(b, `{"kind":"`...)
	b = append(b, gvk.Kind...)
	b = append(b, `","apiVersion":"`...)
	if gvk.Group != "" {
		b = append(b, gvk.Group...)
		b = append(b, '/')
	}
	b = append(b, gvk.Version...)
	b = append(b, '"')
	buf.Write(b)
}

func carriesKind(object []byte) bool {
	return bytes.HasPrefix(object, []byte(`{"kind":"`)) || bytes.HasPrefix(object, []byte(`{"apiVersion":"`))
}

// appendJSONItem writes obj as an item of a typed list, where items carry no kind.
func appendJSONItem(buf *bytes.Buffer, obj runtime.Object) error {
	start := buf.Len()
	if err := json.NewEncoder(buf).Encode(obj); err != nil {
		return err
	}
	buf.Truncate(buf.Len() - 1)
	gvk := obj.GetObjectKind().GroupVersionKind()
	if gvk.Empty() {
		return nil
	}
	if _, unstructured := obj.(runtime.Unstructured); unstructured {
		return nil
	}
	head := getBuffer()
	defer putBuffer(head)
	appendKind(head, gvk)
	out := buf.Bytes()[start:]
	if !bytes.HasPrefix(out, head.Bytes()) || out[head.Len()] != ',' {
		return nil
	}
	out[head.Len()] = '{'
	n := copy(out, out[head.Len():])
	buf.Truncate(start + n)
	return nil
}

// message is what the generated protobuf code of the API types offers.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

var protobufMagic = []byte("k8s\x00")

// appendProtobuf writes obj in the runtime.Unknown envelope.
func appendProtobuf(buf *bytes.Buffer, gvk schema.GroupVersionKind, obj runtime.Object) error {
	msg, ok := obj.(message)
	if !ok {
		return notAcceptable(contentJSON, contentYAML)
	}
	if own := obj.GetObjectKind().GroupVersionKind(); !own.Empty() {
		gvk = own
	}
	size := msg.Size()
	appendEnvelope(buf, gvk, size)
	if err := appendMessage(buf, msg, size); err != nil {
		return err
	}
	buf.Write(envelopeEnd)
	return nil
}

// The fields of runtime.Unknown: 1 typeMeta, 2 raw, 3 contentEncoding, 4 contentType.
var envelopeEnd = []byte{3<<3 | 2, 0, 4<<3 | 2, 0}

// appendEnvelope writes what stands before the raw bytes, of which there will be size.
func appendEnvelope(buf *bytes.Buffer, gvk schema.GroupVersionKind, size int) {
	version := gvk.GroupVersion().String()
	b := append(buf.AvailableBuffer(), protobufMagic...)
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(2+varintSize(len(version))+varintSize(len(gvk.Kind))+len(version)+len(gvk.Kind)))
	b = appendField(b, 1, version)
	b = appendField(b, 2, gvk.Kind)
	b = append(b, 2<<3|2)
	b = binary.AppendUvarint(b, uint64(size))
	buf.Write(b)
}

// appendField writes a length-delimited protobuf field.
func appendField[T string | []byte](b []byte, number int, value T) []byte {
	b = binary.AppendUvarint(b, uint64(number<<3|2))
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

func varintSize(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

// appendMessage writes msg, which has the given size.
func appendMessage(buf *bytes.Buffer, msg message, size int) error {
	buf.Grow(size)
	b := buf.AvailableBuffer()[:size]
	n, err := msg.MarshalToSizedBuffer(b)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("encode %T: %d bytes where %d were announced", msg, n, size)
	}
	buf.Write(b)
	return nil
}

func formatRevision(revision int64) string { return strconv.FormatInt(revision, 10) }
