package registry

import (
	"sync"
	"sync/atomic"
	"time"
)

// bookmarkPeriod is how often an idle watch learns how far it has seen.
const bookmarkPeriod = time.Minute

// bookmarkClock counts minutes for all watches with one timer, which is armed
// only while a watch waits for it. The zero value is ready.
type bookmarkClock struct {
	round atomic.Int64 // raised by each tick

	mu     sync.Mutex
	ticked chan struct{} // closed by the next tick, for which the timer is armed; nil while nobody waits
}

// after gives a channel that is closed when the clock has moved on from round.
func (c *bookmarkClock) after(round int64) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.round.Load() != round {
		past := make(chan struct{})
		close(past)
		return past
	}
	if c.ticked == nil {
		c.ticked = make(chan struct{})
		time.AfterFunc(bookmarkPeriod, c.tick)
	}
	return c.ticked
}

// tick starts the next round.
func (c *bookmarkClock) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.round.Add(1)
	close(c.ticked)
	c.ticked = nil
}
