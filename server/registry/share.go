package registry

import "reflect"

// share lets obj, which is not written yet, use old's memory wherever both hold
// the same, and tells whether they do throughout. Most writes change little, and
// the history keeps what was before; and whoever compares the two afterwards
// finds the same pointers. Only obj itself is set: what its pointers lead to may
// belong to others too.
func share(obj, old reflect.Value) (same bool) {
	if obj.Kind() != reflect.Struct {
		if same = identical(obj, old); same && obj.CanSet() {
			obj.Set(old)
		}
		return same
	}
	same = true
	for i := range obj.NumField() {
		same = share(obj.Field(i), old.Field(i)) && same
	}
	return same
}

// identical is reflect.DeepEqual for what cannot lead back to itself. Such are
// all API objects, and it spares remembering where it has been.
func identical(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if !identical(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Pointer:
		return a.UnsafePointer() == b.UnsafePointer() || !a.IsNil() && !b.IsNil() && identical(a.Elem(), b.Elem())
	case reflect.Slice:
		if a.IsNil() != b.IsNil() || a.Len() != b.Len() {
			return false
		}
		if a.UnsafePointer() == b.UnsafePointer() {
			return true
		}
		for i := range a.Len() {
			if !identical(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		return identicalMaps(a, b)
	case reflect.Interface:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() && b.IsNil()
		}
		a, b = a.Elem(), b.Elem()
		return a.Type() == b.Type() && identical(a, b)
	case reflect.String:
		return a.String() == b.String()
	}
	return a.Comparable() && a.Equal(b)
}

func identicalMaps(a, b reflect.Value) bool {
	if a.IsNil() != b.IsNil() || a.Len() != b.Len() {
		return false
	}
	if a.UnsafePointer() == b.UnsafePointer() {
		return true
	}
	for it := a.MapRange(); it.Next(); {
		other := b.MapIndex(it.Key())
		if !other.IsValid() || !identical(it.Value(), other) {
			return false
		}
	}
	return true
}
