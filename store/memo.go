package store

import "sync"

// Memo holds values derived from an event, by key. The zero Memo is ready.
type Memo struct {
	mu     sync.Mutex
	values map[any]any
}

// Get returns the value under key, calling derive for the first asker only.
func (m *Memo) Get(key any, derive func() any) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.values[key]; ok {
		return v
	}
	if m.values == nil {
		m.values = make(map[any]any, 2)
	}
	v := derive()
	m.values[key] = v
	return v
}
