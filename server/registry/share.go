package registry

import "reflect"

// share lets obj, which is not written yet, use old's memory wherever both hold
// the same, and tells whether they do throughout. Most writes change little, and
// the history keeps what was before; and whoever compares the two afterwards
// finds the same pointers. Only obj itself is set: what its pointers lead to may
// belong to others too, so that is copied where it is the same in part.
func share(obj, old reflect.Value) (same bool) {
	if identical(obj, old) {
		if obj.CanSet() {
			obj.Set(old)
		}
		return true
	}
	switch obj.Kind() {
	case reflect.Struct:
		shareFields(obj, old)
	case reflect.Slice:
		if obj.CanSet() && obj.Type().Elem().Kind() == reflect.Struct {
			own := reflect.MakeSlice(obj.Type(), obj.Len(), obj.Len())
			reflect.Copy(own, obj)
			for i := range min(obj.Len(), old.Len()) {
				shareFields(own.Index(i), old.Index(i))
			}
			obj.Set(own)
		}
	case reflect.Pointer:
		if obj.CanSet() && !obj.IsNil() && !old.IsNil() && obj.Type().Elem().Kind() == reflect.Struct {
			own := reflect.New(obj.Type().Elem())
			own.Elem().Set(obj.Elem())
			shareFields(own.Elem(), old.Elem())
			obj.Set(own)
		}
	}
	return false
}

func shareFields(obj, old reflect.Value) {
	for i := range obj.NumField() {
		if f := obj.Field(i); f.CanSet() {
			share(f, old.Field(i))
		}
	}
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
	case reflect.Bool:
		return a.Bool() == b.Bool()
	case reflect.Int, reflect.Int32, reflect.Int64:
		return a.Int() == b.Int()
	case reflect.Func, reflect.Chan, reflect.Array:
		return false // no object has any
	}
	return a.Equal(b)
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
