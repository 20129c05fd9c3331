package document

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// SuspectProtobuf tells, at a glance, whether there is anything in a message like
// a quantity out of range.
func SuspectProtobuf(data []byte) bool { return suspicious(data) }

// CheckProtobufQuantities is CheckQuantities for a protobuf message that is read
// into a value of type t.
func CheckProtobufQuantities(data []byte, t reflect.Type) error {
	if t == nil || !suspicious(data) {
		return nil
	}
	w := messageWalk{fields: map[reflect.Type]map[uint64]messageField{}}
	return w.message(data, t, 0)
}

// messageWalk follows the fields of a protobuf message along a Go type.
type messageWalk struct {
	fields map[reflect.Type]map[uint64]messageField
}

type messageField struct {
	name   string
	goType reflect.Type
}

const lengthDelimited = 2 // the wire type of messages and strings

// message looks at the fields that may hold quantities; broken messages are the
// decoder's to refuse.
func (w *messageWalk) message(data []byte, t reflect.Type, depth int) error {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if depth > MaxNesting {
		return ErrTooDeep
	}
	for len(data) > 0 {
		number, content, rest, ok := nextField(data)
		if !ok {
			return nil
		}
		data = rest
		f, known := w.field(t, number)
		switch {
		case content == nil || !known:
		case t == quantityType:
			if err := CheckQuantity(string(content)); err != nil {
				return err
			}
		default:
			if err := w.message(content, f.goType, depth+1); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// nextField cuts one field off; content is nil when it is no message or string.
func nextField(data []byte) (number uint64, content, rest []byte, ok bool) {
	key, n := binary.Uvarint(data)
	if n <= 0 {
		return 0, nil, nil, false
	}
	data = data[n:]
	skip := 0
	switch key & 7 {
	case 0:
		_, skip = binary.Uvarint(data)
	case 1:
		skip = 8
	case 5:
		skip = 4
	case lengthDelimited:
		size, n := binary.Uvarint(data)
		if n <= 0 || size > uint64(len(data)-n) {
			return 0, nil, nil, false
		}
		end := n + int(size)
		return key >> 3, data[n:end:end], data[end:], true
	}
	if skip <= 0 || skip > len(data) {
		return 0, nil, nil, false
	}
	return key >> 3, nil, data[skip:], true
}

// field gives the Go type of a message's field. A map is a list of entries
// whose second field is the value.
func (w *messageWalk) field(t reflect.Type, number uint64) (messageField, bool) {
	switch {
	case t == quantityType:
		return messageField{}, number == 1
	case t.Kind() == reflect.Map:
		return messageField{"value", t.Elem()}, number == 2
	case t.Kind() != reflect.Struct:
		return messageField{}, false
	}
	known := w.fields[t]
	if known == nil {
		known = map[uint64]messageField{}
		for i := range t.NumField() {
			f := t.Field(i)
			parts := strings.Split(f.Tag.Get("protobuf"), ",")
			if len(parts) < 2 {
				continue
			}
			if n, err := strconv.ParseUint(parts[1], 10, 32); err == nil {
				known[n] = messageField{f.Name, f.Type}
			}
		}
		w.fields[t] = known
	}
	f, ok := known[number]
	return f, ok
}
