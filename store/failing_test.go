package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestLeaderFails: a leader whose disk hangs and then fails ends, whatever it was
// about to do for itself or others. Raft forgets, when it is shut down, to answer
// some of those who wait.
func TestLeaderFails(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	c := newTrio(t)
	broken := errors.New("the disk is broken")
	for range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		for name, s := range c.stores {
			for i := range 8 {
				busy.Go(func() {
					for n := 0; ctx.Err() == nil && !errors.Is(s.failure(), broken); n++ {
						_, _ = s.Sync(ctx)
					}
				})
				busy.Go(func() {
					for n := 0; ctx.Err() == nil && !errors.Is(s.failure(), broken); n++ {
						_, _ = s.Update(ctx, put(fmt.Sprintf("k/%s%d", name, i), fmt.Sprint(n)))
					}
				})
			}
		}
		<-time.After(50 * time.Millisecond)
		failing := c.leader()
		leader := failing.cfg.Name
		hanging, err := failing.log.db.Begin(true) // raft's next write waits for it
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond)
		failing.fail(broken)
		busy.Go(func() {
			<-failing.log.halted
			<-time.After(50 * time.Millisecond)
			if err := hanging.Rollback(); err != nil {
				t.Error(err)
			}
		})
		ended := make(chan error, 1)
		go func() {
			err := c.stops[leader]()
			cancel()
			busy.Wait()
			ended <- err
		}()
		select {
		case err := <-ended:
			if !errors.Is(err, broken) {
				t.Errorf("%s ended: %v", leader, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s does not end, or those who asked it wait for ever", leader)
		}
		c.start(leader)
	}
}
