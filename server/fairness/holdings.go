package fairness

// Hold counts n bytes that a request of the flow keeps in memory, until Drop. It
// refuses what would be more than the flow or the level may hold.
func (l *Level) Hold(flow string, n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held[flow]
	if l.limits.Bytes > 0 && (held+n > l.limits.FlowBytes || l.total+n > l.limits.Bytes) {
		l.refused[ErrQueueFull]++
		return false
	}
	l.held[flow] = held + n
	l.total += n
	return true
}

// Drop takes back what Hold counted.
func (l *Level) Drop(flow string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total -= n
	if rest := l.held[flow] - n; rest > 0 {
		l.held[flow] = rest
	} else {
		delete(l.held, flow)
	}
}

// Figures of a level, for the metrics.
type Figures struct {
	Seats, Executing, Waiting int
	Held                      int64 // bytes
	QueueFull, TimeOut        int64 // requests refused so far, by reason
}

// Figures gives the level's as they are now.
func (l *Level) Figures() Figures {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Figures{
		Seats: l.limits.Seats, Executing: l.limits.Seats - l.free, Waiting: l.waiting, Held: l.total,
		QueueFull: l.refused[ErrQueueFull], TimeOut: l.refused[ErrTimeOut],
	}
}
