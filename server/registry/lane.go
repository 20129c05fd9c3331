package registry

import "strings"

// laneName cannot be a key: keys have no zero byte.
func laneName(e *entry, value string) string { return e.storage.prefix + "\x00" + value }

// StoreLane is the store's Config.Lane.
func (r *Registry) StoreLane(key string, object any) string {
	segment, _, _ := strings.Cut(key, "/")
	e := r.codec.byPrefix[segment]
	obj, ok := object.(Object)
	if e == nil || e.Lane == nil || !ok {
		return ""
	}
	value := e.Lane(obj)
	if value == "" {
		return ""
	}
	return laneName(e, value)
}

// lane is the store's lane that has all events of the selection; "": none has.
func (s *selector) lane() string {
	if s.name != "" && (s.namespace != "" || !s.e.Namespaced) {
		return s.e.key(s.namespace, s.name)
	}
	if s.fields == nil || s.e.storage.Lane == nil {
		return ""
	}
	value, ok := s.fields.RequiresExactMatch(s.e.storage.LaneField)
	if !ok || value == "" {
		return ""
	}
	return laneName(s.e, value)
}
