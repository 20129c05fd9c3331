// Package document checks and changes the documents that requests carry before
// the registry makes objects of them: nesting, YAML's aliases, quantities, JSON
// patches and merge patches. What it does takes time and memory in proportion
// to the documents' size, whatever they say.
package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of the shape of a document.
const (
	// MaxNesting is how deep objects and lists may stand in each other. Kubernetes'
	// own kinds reach twenty, schemas of definitions about a hundred.
	MaxNesting = 1000
	// maxPath bounds the names on the way to any value, together: a hundred
	// warnings and errors name such ways.
	maxPath = 16 << 10
)

// Documents of the wrong shape are refused; the first in the words of Go's JSON
// decoder.
var (
	ErrTooDeep     = errors.New("exceeded max depth")
	errPathTooLong = fmt.Errorf("the names of nested fields are longer than %d bytes together", maxPath)
)

// CheckShape refuses JSON that is nested too deep or has names that are too long.
// Anything else that is wrong with it is left to the decoder. It costs nothing
// for most documents, which are too small for either.
func CheckShape(data []byte) error {
	if len(data) <= maxPath && bytes.Count(data, []byte{'{'})+bytes.Count(data, []byte{'['}) <= MaxNesting {
		return nil
	}
	var above []int // the lengths of the paths to what is open
	path := 0       // to what comes next
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if above = append(above, path); len(above) > MaxNesting {
				return ErrTooDeep
			}
		case '}', ']':
			if len(above) > 0 {
				path, above = above[len(above)-1], above[:len(above)-1]
			}
		case '"':
			end := stringEnd(data, i+1)
			if isName(data[end:]) && len(above) > 0 {
				if path = above[len(above)-1] + end - i; path > maxPath {
					return errPathTooLong
				}
			}
			i = end - 1
		}
	}
	return nil
}

// stringEnd gives the place behind the quote that ends a JSON string.
func stringEnd(data []byte, i int) int {
	for i < len(data) {
		n := bytes.IndexByte(data[i:], '"')
		if n < 0 {
			break
		}
		escapes := 0
		for j := i + n - 1; j >= i && data[j] == '\\'; j-- {
			escapes++
		}
		if i += n + 1; escapes%2 == 0 {
			return i
		}
	}
	return len(data)
}

// isName tells that a colon follows.
func isName(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return len(rest) > 0 && rest[0] == ':'
}

// decode reads one JSON value and keeps its numbers as they are written.
func decode(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}
