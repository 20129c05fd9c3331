package api

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Users get their turns one after the other, whoever has how many requests.
func TestSlotsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, time.Minute)
		if !s.try() || s.try() {
			t.Fatal("one slot is not one")
		}
		var mu sync.Mutex
		var served []string
		for _, user := range strings.Fields("a a a a b b c") {
			go func() {
				if !s.take(t.Context(), user) {
					t.Errorf("%s is refused", user)
				}
				mu.Lock()
				served = append(served, user)
				mu.Unlock()
				s.release()
			}()
			synctest.Wait()
		}
		if s.waiting() != 7 || s.serving() != 1 {
			t.Errorf("%d wait, %d are served", s.waiting(), s.serving())
		}
		s.release()
		synctest.Wait()
		if got := strings.Join(served, " "); got != "a b c a b a a" {
			t.Errorf("served %s", got)
		}
		if s.waiting() != 0 || s.serving() != 0 || len(s.queues) != 0 || len(s.turns) != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// One user cannot fill all places for those that wait.
func TestSlotsRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, time.Minute)
		s.try()
		wait := func(user string) (refused bool) {
			done := make(chan bool, 1)
			go func() { done <- s.take(t.Context(), user) }()
			synctest.Wait()
			return len(done) == 1 && !<-done
		}
		for range waitingPerSlot {
			if wait("a") {
				t.Fatal("refused while there are places")
			}
		}
		if !wait("a") {
			t.Error("a has more than all places")
		}
		for range waitingPerSlot / 2 {
			if wait("b") {
				t.Error("b is refused because of a")
			}
		}
		if !wait("b") {
			t.Error("b has more than its share")
		}
		if wait("c") {
			t.Error("c is refused because of others")
		}
		for range s.waiting() + 1 {
			s.release()
		}
	})
}

// A request that waits no longer leaves no trace.
func TestSlotsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, time.Minute)
		s.try()
		began := time.Now()
		if s.take(t.Context(), "a") || time.Since(began) != time.Minute {
			t.Errorf("gave up after %v", time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if s.take(ctx, "a") {
			t.Error("a request that was taken back has a slot")
		}
		s.release()
		if !s.try() || s.waiting() != 0 {
			t.Error("the slot is lost")
		}
	})
}

// However waits end, no slot is lost and none is made.
func TestSlotsCount(t *testing.T) {
	s := newSlots(3, time.Millisecond)
	var busy, most int
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
				if s.take(ctx, string(rune('a'+i%3))) {
					mu.Lock()
					busy++
					most = max(most, busy)
					mu.Unlock()
					for range i {
						runtime.Gosched()
					}
					mu.Lock()
					busy--
					mu.Unlock()
					s.release()
				}
				cancel()
			}
		})
	}
	group.Wait()
	if most > 3 || s.serving() != 0 || s.waiting() != 0 || len(s.queues) != 0 {
		t.Errorf("%d at once; %+v", most, s)
	}
}
