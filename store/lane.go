package store

// A lane is the part of a resource's events that watchers of one object, or of
// the objects with one value of a field, share. Without it each of thousands of
// watchers would have to look at every event of the resource. Lanes exist while
// somebody watches them; the mvcc's lock guards them.
type lane struct {
	eventLog       // the events after from that belong to the lane
	from     int64 // a revision
	watchers int
}

// lanesOf names the lanes that the event belongs to: that of its key, and those
// of the object now and before. A name may be empty or given twice.
func (m *mvcc) lanesOf(e *Event) [3]string {
	names := [3]string{e.Entry.Key}
	if m.lane == nil {
		return names
	}
	names[1] = m.lane(e.Entry.Key, e.Entry.Object)
	if e.Prev != nil {
		names[2] = m.lane(e.Entry.Key, e.Prev.Object)
	}
	if names[1] == names[2] {
		names[2] = ""
	}
	return names
}

// appendToLanes adds the event to the lanes that are watched, and these to the
// logs whose watchers must be woken.
func (m *mvcc) appendToLanes(e *Event, touched map[*eventLog]struct{}) {
	if len(m.history.lanes) == 0 {
		return
	}
	for _, name := range m.lanesOf(e) {
		if l := m.history.lanes[name]; l != nil && name != "" {
			l.events = append(l.events, e)
			touched[&l.eventLog] = struct{}{}
		}
	}
}

// enterLane gives the lane with all its events after revision after.
func (m *mvcc) enterLane(resource, name string, after int64) *lane {
	l := m.history.lanes[name]
	if l == nil {
		if m.history.lanes == nil {
			m.history.lanes = make(map[string]*lane)
		}
		l = &lane{from: m.revision}
		m.history.lanes[name] = l
	}
	l.watchers++
	if l.from > after {
		l.from, l.events, l.forgotten = after, nil, 0 // after is not compacted, so nothing after it is
		for _, e := range since(m.history.log(resource).events, after) {
			if names := m.lanesOf(e); names[0] == name || names[1] == name || names[2] == name {
				l.events = append(l.events, e)
			}
		}
	}
	return l
}

func (m *mvcc) leaveLane(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.history.lanes[name]
	if l.watchers--; l.watchers == 0 {
		delete(m.history.lanes, name)
	}
}
