package registry

import (
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry/document"
)

// maxSpread bounds the sum of the squares of the lengths of all lists and maps of
// what the general field manager works on: it inserts each member into a sorted
// list of all. That is one map of 20,000 members, or 400 of 1,000.
const maxSpread = 20_000 * 20_000

// smallObject is a size below which nothing can be spread that wide.
const smallObject = 64 << 10

// tooWide tells that the general field manager would take too long for v, an
// object or an applied configuration, which takes size bytes.
func tooWide(v any, size int) bool {
	return size > smallObject && spreadOf(reflect.ValueOf(v)) > maxSpread
}

func spreadOf(v reflect.Value) (sum int64) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return spreadOf(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			sum += spreadOf(v.Field(i))
		}
	case reflect.Map:
		sum = int64(v.Len()) * int64(v.Len())
		for it := v.MapRange(); it.Next() && sum <= maxSpread; {
			sum += spreadOf(it.Value())
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return 0
		}
		sum = int64(v.Len()) * int64(v.Len())
		for i := 0; i < v.Len() && sum <= maxSpread; i++ {
			sum += spreadOf(v.Index(i))
		}
	}
	return sum
}

// sizeOf is the encoded size of an object, about.
func sizeOf(obj any) int {
	if m, ok := obj.(protoMarshaler); ok {
		return m.Size()
	}
	return smallObject + 1
}

func errTooWide(what string) error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s has too many fields in one list or map to work out who owns them: use an update or a patch of another kind", what))
}

// wellFormedOwners tells that the owners that a client sends can be read without
// going deeper than any object does. JSON bodies are looked at as a whole, but
// protobuf keeps these sets as bytes.
func wellFormedOwners(entries []metav1.ManagedFieldsEntry) bool {
	for i := range entries {
		if set := entries[i].FieldsV1; set != nil && document.CheckShape(set.GetRawBytes()) != nil {
			return false
		}
	}
	return true
}
