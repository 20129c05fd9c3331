package store

import "sync"

// Memo holds values derived from an event, by key. The zero Memo is ready. There
// are few, so a list is smaller than a map and as quick.
type Memo struct {
	mu     sync.Mutex
	values []derived
}

type derived struct{ key, value any }

// Get returns the value under key, calling derive for the first asker only.
func (m *Memo) Get(key any, derive func() any) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.values {
		if m.values[i].key == key {
			return m.values[i].value
		}
	}
	v := derive()
	m.values = append(m.values, derived{key, v})
	return v
}
