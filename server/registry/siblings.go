package registry

import (
	"reflect"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// siblings knows of each workload the object that was stored last: the next one
// is the same but for its names, and can share most of its memory.
type siblings struct {
	mu   sync.RWMutex
	last map[family]Object // guarded by mu; the objects are never changed
}

// family is what objects have in common that are made alike: those of one
// controller, or what has none in one namespace.
type family struct {
	kind       reflect.Type
	namespace  string
	controller types.UID
}

// maxFamilies bounds what is remembered; then it begins anew.
const maxFamilies = 256

func familyOf(obj Object) family {
	f := family{kind: reflect.TypeOf(obj), namespace: obj.GetNamespace()}
	if owner := metav1.GetControllerOfNoCopy(obj); owner != nil {
		f.controller = owner.UID
	}
	return f
}

// shared gives obj with a sibling's memory in place of its own where both hold
// the same. obj itself stays as it is.
func (s *siblings) shared(obj Object) Object {
	s.mu.RLock()
	last := s.last[familyOf(obj)]
	s.mu.RUnlock()
	if last == nil {
		return obj
	}
	out := reflect.New(reflect.TypeOf(obj).Elem())
	out.Elem().Set(reflect.ValueOf(obj).Elem())
	share(out.Elem(), reflect.ValueOf(last).Elem())
	return out.Interface().(Object)
}

// remember takes an object that will never change again.
func (s *siblings) remember(obj Object) {
	f := familyOf(obj)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || len(s.last) >= maxFamilies {
		s.last = make(map[family]Object)
	}
	s.last[f] = obj
}
