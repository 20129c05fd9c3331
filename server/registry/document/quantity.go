package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Limits of a quantity. The library that reads it multiplies by ten to the power
// of the exponent, in whole numbers, and again whenever it compares: a million
// digits take it seconds, 1e9999999999 hours.
const (
	maxQuantityLength   = 256 // characters
	maxQuantityExponent = 999 // of ten, either way
)

// CheckQuantity refuses a quantity that costs more to reckon with than its size.
// What is no quantity at all is left to the parser.
func CheckQuantity(s string) error {
	if len(s) > maxQuantityLength {
		return fmt.Errorf("quantity %q... is out of range: it has %d characters, at most %d are taken", s[:40], len(s), maxQuantityLength)
	}
	_, exponent, ok := strings.Cut(strings.Replace(s, "E", "e", 1), "e")
	if !ok {
		return nil
	}
	digits := strings.TrimLeft(strings.TrimLeft(exponent, "+-"), "0")
	if len(digits) > 0 && digits[0] >= '0' && digits[0] <= '9' && len(digits) > len(strconv.Itoa(maxQuantityExponent)) {
		return fmt.Errorf("quantity %q is out of range: its exponent may be from -%d to %d", s, maxQuantityExponent, maxQuantityExponent)
	}
	return nil
}

// SuspectJSON tells, at a glance, whether there is anything in JSON like a
// quantity out of range.
func SuspectJSON(data []byte) bool { return suspicious(data) || hasEscapedNumber(data) }

// CheckQuantities refuses JSON in which a quantity is out of range, where it is
// read into a value of type t.
func CheckQuantities(data []byte, t reflect.Type) error {
	if !SuspectJSON(data) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	w := quantityWalk{tokens: d, fields: map[reflect.Type]map[string]reflect.Type{}}
	if err := w.value(t); err != nil {
		return w.outOfRange(err, data)
	}
	return nil
}

// longRun is how many digits in a row make a text suspicious: an exponent of
// four digits is out of range.
const longRun = 4

// suspicious looks for a run of digits that may be an exponent out of range, or
// is too long. Every such run covers one of the places that are looked at.
func suspicious(data []byte) bool {
	for i := longRun - 1; i < len(data); i += longRun {
		if !digit(data[i]) {
			continue
		}
		from, to := i, i+1
		for from > 0 && digit(data[from-1]) {
			from--
		}
		for to < len(data) && digit(data[to]) {
			to++
		}
		if to-from >= longRun && followsExponent(data[:from]) || to-from > maxQuantityLength/2 {
			return true
		}
		i = to - (to-i)%longRun // the run is judged
	}
	return false
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// followsExponent tells that data ends like a number before its exponent's
// digits: "1e", "1.5E-".
func followsExponent(data []byte) bool {
	n := len(data)
	if n > 0 && (data[n-1] == '-' || data[n-1] == '+') {
		n--
	}
	if n < 2 || data[n-1] != 'e' && data[n-1] != 'E' {
		return false
	}
	return digit(data[n-2]) || data[n-2] == '.'
}

// hasEscapedNumber tells that JSON writes a character of a number as \u00xx, as
// nobody does who means well.
func hasEscapedNumber(data []byte) bool {
	for {
		i := bytes.Index(data, []byte(`\u00`))
		if i < 0 || len(data) < i+6 {
			return false
		}
		switch code := strings.ToLower(string(data[i+4 : i+6])); {
		case code[0] == '3' && digit(code[1]), slices.Contains([]string{"2b", "2d", "2e", "45", "65"}, code):
			return true
		}
		data = data[i+6:]
	}
}

// quantityWalk follows the tokens of JSON along a Go type.
type quantityWalk struct {
	tokens *json.Decoder
	fields map[reflect.Type]map[string]reflect.Type // by name in JSON
	path   []string
}

// syntaxError is the tokens' own.
type syntaxError struct{ error }

// outOfRange names the place of a quantity. Broken JSON is the decoder's to refuse.
func (w *quantityWalk) outOfRange(err error, data []byte) error {
	if _, broken := err.(syntaxError); !broken {
		return fmt.Errorf("%s: %w", strings.TrimPrefix(strings.Join(w.path, ""), "."), err)
	}
	if json.Valid(data) {
		return err
	}
	return nil
}

var quantityType = reflect.TypeFor[resource.Quantity]()

// value reads one value; t is nil where no quantity can be.
func (w *quantityWalk) value(t reflect.Type) error {
	token, err := w.tokens.Token()
	if err != nil {
		return syntaxError{err}
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch token {
	case json.Delim('{'):
		return w.object(t)
	case json.Delim('['):
		return w.list(t)
	}
	if t != quantityType {
		return nil
	}
	switch token := token.(type) {
	case string:
		return CheckQuantity(token)
	case json.Number:
		return CheckQuantity(token.String())
	}
	return nil
}

func (w *quantityWalk) object(t reflect.Type) error {
	for w.tokens.More() {
		token, err := w.tokens.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return syntaxError{err}
		}
		w.path = append(w.path, "."+name)
		if err := w.value(w.member(t, name)); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	return w.end()
}

func (w *quantityWalk) list(t reflect.Type) error {
	var elem reflect.Type
	if t != nil && t.Kind() == reflect.Slice {
		elem = t.Elem()
	}
	for i := 0; w.tokens.More(); i++ {
		w.path = append(w.path, "["+strconv.Itoa(i)+"]")
		if err := w.value(elem); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	return w.end()
}

func (w *quantityWalk) end() error {
	if _, err := w.tokens.Token(); err != nil {
		return syntaxError{err}
	}
	return nil
}

func (w *quantityWalk) member(t reflect.Type, name string) reflect.Type {
	switch {
	case t == nil || t == quantityType:
		return nil
	case t.Kind() == reflect.Map:
		return t.Elem()
	case t.Kind() != reflect.Struct:
		return nil
	}
	known := w.fields[t]
	if known == nil {
		known = map[string]reflect.Type{}
		addFields(known, t)
		w.fields[t] = known
	}
	return known[name]
}

// addFields lists the fields of t as JSON names them, those of inlined structs too.
func addFields(known map[string]reflect.Type, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous:
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				addFields(known, inner)
			}
		case name != "":
			known[name] = f.Type
		case f.IsExported():
			known[f.Name] = f.Type
		}
	}
}
