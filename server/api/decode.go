package api

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"orch/server/registry"
)

// codec decodes the bodies of requests.
type codec struct {
	scheme                             *runtime.Scheme
	json, strictJSON, yaml, strictYAML *json.Serializer
	protobuf                           *protobuf.Serializer
}

func newCodec(scheme *runtime.Scheme) *codec {
	text := func(yaml, strict bool) *json.Serializer {
		return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: yaml, Strict: strict})
	}
	return &codec{
		scheme: scheme,
		json:   text(false, false), strictJSON: text(false, true),
		yaml: text(true, false), strictYAML: text(true, true),
		protobuf: protobuf.NewSerializer(scheme, scheme),
	}
}

func (c *codec) decoder(m media, strict bool) runtime.Decoder {
	switch {
	case m == mediaProtobuf:
		return c.protobuf
	case m == mediaYAML && strict:
		return c.strictYAML
	case m == mediaYAML:
		return c.yaml
	case strict:
		return c.strictJSON
	}
	return c.json
}

// decode reads data into into, an empty object of kind gvk. What Warn finds is
// given to warn.
func (c *codec) decode(data []byte, m media, into runtime.Object, gvk schema.GroupVersionKind, validation string, warn func(string)) (runtime.Object, error) {
	if err := c.check(data, m, gvk); err != nil {
		return nil, decodeError(err, gvk, &gvk, data)
	}
	strict := validation != metav1.FieldValidationIgnore
	obj, actual, err := c.decoder(m, strict).Decode(data, &gvk, into)
	if err != nil {
		found, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil || validation == metav1.FieldValidationStrict {
			return nil, decodeError(err, gvk, actual, data)
		}
		for _, e := range found.Errors() {
			for _, line := range yamlWarnings(e.Error()) {
				warn(line)
			}
		}
	}
	if actual.Kind != gvk.Kind {
		err := fmt.Errorf("converting (%s.%s) to (%s.%s): unknown conversion", actual.Version, actual.Kind, registry.InternalPackage(gvk.Group), gvk.Kind)
		return nil, decodeError(err, gvk, actual, data)
	}
	if actual.GroupVersion() != gvk.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", actual.GroupVersion(), gvk.GroupVersion()))
	}
	return obj, nil
}

// decodeError says which object could not be read, as upstream does.
func decodeError(err error, want schema.GroupVersionKind, actual *schema.GroupVersionKind, data []byte) error {
	if actual != nil && actual.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", actual.Kind, actual.Version, want.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, summarize(data)))
}

// summarize shows the beginning of a body in an error message.
func summarize(data []byte) string {
	const most = 30
	switch {
	case len(data) == 0:
		return "<empty>"
	case data[0] == '{' && len(data) > most:
		return string(data[:most]) + " ..."
	case data[0] == '{':
		return string(data)
	case len(data) > most:
		return hex.EncodeToString(data[:most]) + " ..."
	}
	return hex.EncodeToString(data)
}

// yamlWarnings splits the YAML decoder's collected error into its lines.
func yamlWarnings(text string) []string {
	for _, prefix := range []string{"error converting YAML to JSON: yaml: unmarshal errors:\n", "yaml: unmarshal errors:\n"} {
		if list, ok := strings.CutPrefix(text, prefix); ok {
			lines := strings.Split(list, "\n")
			for i := range lines {
				lines[i] = strings.TrimSpace(lines[i])
			}
			return lines
		}
	}
	return []string{text}
}

// bodyStep is how much of a body is read, and counted as held, at once; the
// client has bodyPatience for each.
const (
	bodyStep     = 64 << 10
	bodyPatience = 8 * time.Second
)

// readAhead reads the whole body before the request has a seat, for the client
// decides how long that takes. readBody gives what it read.
func readAhead(w http.ResponseWriter, r *http.Request, q *request) error {
	if r.ContentLength == 0 {
		return nil
	}
	defer r.Body.Close()
	data, err := readPieces(w, r, q)
	if err != nil {
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close") // the deadline stays, so that nobody waits for the rest
		}
		return err
	}
	r.Body = &aheadBody{bytes.NewReader(data), data}
	return nil
}

func readPieces(w http.ResponseWriter, r *http.Request, q *request) ([]byte, error) {
	if r.ContentLength > maxBody {
		return nil, tooLarge()
	}
	conn := http.NewResponseController(w)
	body := bytes.NewBuffer(make([]byte, 0, min(max(r.ContentLength, 0), bodyStep)+bytes.MinRead))
	for {
		deadline := time.Now().Add(bodyPatience)
		if last, ok := r.Context().Deadline(); ok && last.Before(deadline) {
			deadline = last
		}
		conn.SetReadDeadline(deadline) // not all writers of tests can
		_, err := io.CopyN(body, r.Body, bodyStep)
		switch {
		case err == io.EOF && body.Len() <= maxBody:
			conn.SetReadDeadline(time.Time{})
			return body.Bytes(), nil
		case err != nil && err != io.EOF:
			return nil, bodyError(err)
		case body.Len() > maxBody:
			return nil, tooLarge()
		}
		if err := q.hold(bodyStep); err != nil {
			return nil, err
		}
	}
}

// aheadBody is a body that was read already.
type aheadBody struct {
	*bytes.Reader
	data []byte
}

// Close implements io.Closer.
func (*aheadBody) Close() error { return nil }

// readBody gives the whole body.
func readBody(r *http.Request) ([]byte, error) {
	if ahead, ok := r.Body.(*aheadBody); ok {
		return ahead.data, nil
	}
	return nil, nil // there is none
}

func tooLarge() error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
}

func bodyError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return apierrors.NewBadRequest("unexpected EOF in the body of the request")
	}
	return err
}
