package registry

import (
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// maxMergeCost bounds the sum of the squares of the lengths of all lists that a
// strategic merge patch speaks of, its own and the object's: the library looks
// for each element among all of them. That is one list of 3,000.
const maxMergeCost = 3000 * 3000

var errTooLong = apierrors.NewRequestEntityTooLargeError("the patch merges lists that are too long to be held against each other: use a merge patch, which replaces them")

// mergeCost walks along patch.
func mergeCost(current, patch map[string]any) (cost int) {
	for name, value := range patch {
		// "$setElementOrder/env" and its like speak of env
		if _, list, directive := strings.Cut(name, "/"); directive && name[0] == '$' {
			name = list
		}
		cost += valueCost([]any{current[name]}, value)
		if cost > maxMergeCost {
			break
		}
	}
	return cost
}

// valueCost takes all values that value may be merged with.
func valueCost(current []any, value any) (cost int) {
	switch value := value.(type) {
	case map[string]any:
		return mergeCost(widest(current, value), value)
	case []any:
		var elements []any
		for _, c := range current {
			if list, ok := c.([]any); ok {
				elements = append(elements, list...)
			}
		}
		length := len(value) + len(elements)
		cost = length * length
		for i := 0; i < len(value) && cost <= maxMergeCost; i++ {
			cost += valueCost(elements, value[i])
		}
	}
	return cost
}

// widest puts together the longest of what the values have under each name that
// patch speaks of.
func widest(values []any, patch map[string]any) map[string]any {
	if len(values) == 1 {
		only, _ := values[0].(map[string]any)
		return only
	}
	out := make(map[string]any)
	for name := range patch {
		if _, list, directive := strings.Cut(name, "/"); directive && name[0] == '$' {
			name = list
		}
		for _, v := range values {
			fields, _ := v.(map[string]any)
			have, _ := out[name].([]any)
			if list, ok := fields[name].([]any); ok && len(list) > len(have) {
				out[name] = list
			} else if out[name] == nil {
				out[name] = fields[name]
			}
		}
	}
	return out
}
