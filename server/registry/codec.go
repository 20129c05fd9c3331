package registry

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"orch/store"
)

// A value at rest is a header and a payload. The header is one byte for the
// form, one for the length of the kind's name, and that name ("v1/Pod").
const (
	formProto  = 'p'
	formJSON   = 'j'
	formSealed = 'e' // what follows is a whole value, encrypted
)

// protoMarshaler is what generated Kubernetes types offer.
type protoMarshaler interface {
	Size() int
	MarshalToSizedBuffer(data []byte) (int, error)
}

type protoUnmarshaler interface{ Unmarshal(data []byte) error }

// codec is the store's Codec: bytes to shared objects.
type codec struct {
	byPrefix map[string]*entry            // storage entries by first key segment
	byKind   map[string]map[string]*entry // first key segment, then "group/version/Kind"
	sealer   Encryption
	siblings siblings
}

func newCodec(entries map[*Resource]*entry, sealer Encryption) *codec {
	c := &codec{byPrefix: map[string]*entry{}, byKind: map[string]map[string]*entry{}, sealer: sealer}
	for _, e := range entries {
		segment := strings.TrimSuffix(e.prefix, "/")
		if e.storage == e && e.Evaluate == nil {
			if old := c.byPrefix[segment]; old == nil || old.Version < e.Version {
				c.byPrefix[segment] = e
			}
		}
		if c.byKind[segment] == nil {
			c.byKind[segment] = map[string]*entry{}
		}
		c.byKind[segment][e.kindName()] = e
	}
	return c
}

// The group is part of it: v1 Event is a kind of two groups.
func (e *entry) kindName() string { return e.Group + "/" + e.Version + "/" + e.Kind }

// encode gives the value to keep for obj under key.
func (c *codec) encode(e *entry, key string, obj Object) ([]byte, error) {
	plain, err := marshal(e, obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", key, err)
	}
	if !e.Encrypt || c.sealer == nil {
		return plain, nil
	}
	sealed, err := c.sealer.Encrypt(key, plain)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", key, err)
	}
	return append([]byte{formSealed}, sealed...), nil
}

// marshal writes header and payload into one buffer. The resourceVersion
// inside is whatever obj carries: Decode overrides it.
func marshal(e *entry, obj Object) ([]byte, error) {
	kind := e.kindName()
	header := 2 + len(kind)
	m, ok := obj.(protoMarshaler)
	if !ok {
		body, err := json.Marshal(obj)
		if err != nil {
			return nil, err
		}
		value := append(make([]byte, 0, header+len(body)), formJSON, byte(len(kind)))
		return append(append(value, kind...), body...), nil
	}
	value := make([]byte, header+m.Size())
	value[0], value[1] = formProto, byte(len(kind))
	copy(value[2:], kind)
	n, err := m.MarshalToSizedBuffer(value[header:])
	if err != nil {
		return nil, err
	}
	if n != len(value)-header {
		return nil, fmt.Errorf("object changed while it was encoded")
	}
	return value, nil
}

// Decode implements store.Codec.
func (c *codec) Decode(key string, value []byte, revision int64) (any, error) {
	segment, _, _ := strings.Cut(key, "/")
	if segment == claimSegment {
		return string(value), nil
	}
	e := c.byPrefix[segment]
	if e == nil {
		return append([]byte(nil), value...), nil // of a resource this version does not know
	}
	if len(value) > 0 && value[0] == formSealed {
		if c.sealer == nil {
			return nil, fmt.Errorf("decode %s: it is encrypted and no key is configured", key)
		}
		plain, err := c.sealer.Decrypt(key, value[1:])
		if err != nil {
			return nil, fmt.Errorf("decrypt %s: %w", key, err)
		}
		value = plain
	}
	obj, err := c.unmarshal(e, segment, value)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", key, err)
	}
	if e.Default != nil {
		e.Default(obj)
	}
	obj = c.siblings.shared(obj)
	if revision == 0 { // it will be stamped when it is applied
		return obj, nil
	}
	c.Stamp(obj, revision)
	return obj, nil
}

func (c *codec) unmarshal(e *entry, segment string, value []byte) (Object, error) {
	if len(value) < 2 || len(value) < 2+int(value[1]) {
		return nil, fmt.Errorf("value is cut off")
	}
	form, kind, body := value[0], string(value[2:2+value[1]]), value[2+value[1]:]
	written := c.byKind[segment][kind]
	if written == nil {
		return nil, fmt.Errorf("unknown kind %q", kind)
	}
	obj := written.New()
	switch form {
	case formProto:
		m, ok := obj.(protoUnmarshaler)
		if !ok {
			return nil, fmt.Errorf("%s has no protobuf form", kind)
		}
		if err := m.Unmarshal(body); err != nil {
			return nil, err
		}
	case formJSON:
		if err := json.Unmarshal(body, obj); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("unknown form %q", form)
	}
	written.setKind(obj)
	if written != e {
		return written.keep(obj)
	}
	return obj, nil
}

// Stamp implements store.Codec. It is the last change that an object sees.
func (c *codec) Stamp(object any, revision int64) {
	if obj, ok := object.(Object); ok {
		obj.SetResourceVersion(strconv.FormatInt(revision, 10))
		c.siblings.remember(obj)
	}
}

// Tombstone implements store.Codec: the last state at the revision of its deletion.
func (c *codec) Tombstone(last any, revision int64) any {
	obj, ok := last.(Object)
	if !ok {
		return last
	}
	dead := shallowCopy(obj)
	dead.SetResourceVersion(strconv.FormatInt(revision, 10))
	return dead
}

// shallowCopy copies the top struct only, so that its metadata scalars can be
// set; everything reachable through pointers stays shared and immutable.
func shallowCopy(obj Object) Object {
	v := reflect.ValueOf(obj)
	if v.Elem().Kind() != reflect.Struct || v.Elem().NumField() == 1 {
		return obj.DeepCopyObject().(Object) // Unstructured keeps its metadata in a map
	}
	c := reflect.New(v.Type().Elem())
	c.Elem().Set(v.Elem())
	return c.Interface().(Object)
}

var _ store.Codec = (*codec)(nil)
