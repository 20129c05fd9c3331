package document

import (
	"encoding/json"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// Merge applies a JSON merge patch (RFC 7386) to a document. It is jsonpatch's
// MergePatch, which reads again what is nested for each level above it.
func Merge(doc, patch []byte) ([]byte, error) {
	current, err := decode(doc)
	if err != nil || current == nil {
		return nil, jsonpatch.ErrBadJSONDoc
	}
	wanted, err := decode(patch)
	if err != nil {
		return nil, jsonpatch.ErrBadJSONPatch
	}
	switch wanted := wanted.(type) {
	case map[string]any:
		return json.Marshal(merge(current, wanted))
	case []any:
		prune(wanted)
		return json.Marshal(wanted)
	}
	return nil, jsonpatch.ErrBadJSONPatch
}

func merge(current, patch any) any {
	into, ok := current.(map[string]any)
	if !ok {
		prune(patch)
		return patch
	}
	fields, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	for name, value := range fields {
		switch {
		case value == nil:
			delete(into, name)
		case into[name] == nil:
			prune(value)
			into[name] = value
		default:
			into[name] = merge(into[name], value)
		}
	}
	return into
}

// prune takes away what a patch asks to be absent where there is nothing yet.
func prune(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if value == nil {
				delete(v, name)
			} else {
				prune(value)
			}
		}
	case []any:
		for _, value := range v {
			prune(value)
		}
	}
}
