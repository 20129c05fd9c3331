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
	armed  bool
	nextID int
	wakers map[int]func() // run at the next tick, once
}

// wake runs fn when the clock moves on from round, at once if it has already;
// forget takes that back.
func (c *bookmarkClock) wake(round int64, fn func()) (forget func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.round.Load() != round {
		fn()
		return func() {}
	}
	if c.wakers == nil {
		c.wakers = make(map[int]func())
	}
	id := c.nextID
	c.nextID++
	c.wakers[id] = fn
	if !c.armed {
		c.armed = true
		time.AfterFunc(bookmarkPeriod, c.tick)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.wakers, id)
	}
}

// tick starts the next round.
func (c *bookmarkClock) tick() {
	c.mu.Lock()
	due := c.wakers
	c.wakers, c.armed = nil, false
	c.round.Add(1)
	c.mu.Unlock()
	for _, fn := range due {
		fn()
	}
}
