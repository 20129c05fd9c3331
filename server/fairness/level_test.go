package fairness

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newTestLevel(seats int) *Level {
	return NewLevel("test", Limits{Seats: seats, Queued: 10 * seats, FlowQueued: 8 * seats, Patience: time.Minute})
}

// left reports what a level without requests should not have.
func left(t *testing.T, l *Level) {
	t.Helper()
	if f := l.Figures(); f.Executing != 0 || f.Waiting != 0 || f.Held != 0 || len(l.flows) != 0 || len(l.turns) != 0 || len(l.held) != 0 {
		t.Errorf("left over: %+v, %d flows, %d turns", f, len(l.flows), len(l.turns))
	}
}

// Users get their turns one after the other, whoever has how many requests.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLevel(1)
		if !l.Try() || l.Try() {
			t.Fatal("one seat is not one")
		}
		var mu sync.Mutex
		var served []string
		for _, user := range strings.Fields("a a a a b b c") {
			go func() {
				if err := l.Acquire(t.Context(), user); err != nil {
					t.Errorf("%s is refused: %v", user, err)
				}
				mu.Lock()
				served = append(served, user)
				mu.Unlock()
				l.Release()
			}()
			synctest.Wait()
		}
		if f := l.Figures(); f.Waiting != 7 || f.Executing != 1 {
			t.Errorf("%+v", f)
		}
		l.Release()
		synctest.Wait()
		if got := strings.Join(served, " "); got != "a b c a b a a" {
			t.Errorf("served %s", got)
		}
		left(t, l)
	})
}

// queued lets requests of the flow wait; refused gets what came of those that
// ended at once.
func queued(t *testing.T, l *Level, flow string, n int, refused chan<- string) {
	for range n {
		go func() {
			if err := l.Acquire(t.Context(), flow); err != nil {
				refused <- flow
				return
			}
			l.Release()
		}()
		synctest.Wait()
	}
}

// One flow cannot fill all places, and where all are taken the longest queue
// makes room.
func TestQueuesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLevel(1)
		l.Try()
		refused := make(chan string, 100)
		queued(t, l, "a", 9, refused)
		if len(refused) != 1 || <-refused != "a" {
			t.Fatal("a flow has more places than it may")
		}
		queued(t, l, "b", 2, refused)
		if len(refused) != 0 {
			t.Fatal("refused while there are places")
		}
		queued(t, l, "c", 3, refused)
		for range 3 {
			if who := <-refused; who != "a" {
				t.Errorf("%s made room", who)
			}
		}
		for i := range 20 {
			queued(t, l, fmt.Sprint(i), 1, refused)
		}
		f := l.Figures()
		if f.Waiting != 10 || int(f.QueueFull) != 4+len(refused) {
			t.Errorf("%+v, %d refused", f, len(refused))
		}
		l.Release()
		synctest.Wait()
		left(t, l)
	})
}

// A request that waits no longer leaves no trace, not even while no seat falls free.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLevel(1)
		l.Try()
		began := time.Now()
		if err := l.Acquire(t.Context(), "a"); !errors.Is(err, ErrTimeOut) || time.Since(began) != time.Minute {
			t.Errorf("gave up after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Acquire(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a request that was taken back: %v", err)
		}
		if len(l.turns) != 0 || len(l.flows) != 0 {
			t.Errorf("%d turns, %d flows are kept", len(l.turns), len(l.flows))
		}
		l.Release()
		left(t, l)
	})
}

// Work that goes on comes before its flow's other requests, and waits however
// many do.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLevel(1)
		l.Try()
		refused := make(chan string, 1)
		queued(t, l, "a", 8, refused)
		var resumed error
		at := -1
		go func() {
			resumed = l.Resume(t.Context(), "a")
			at = l.Figures().Waiting
			l.Release()
		}()
		synctest.Wait()
		l.Release()
		synctest.Wait()
		if resumed != nil || at != 8 {
			t.Errorf("%v, while %d waited", resumed, at)
		}
		left(t, l)
	})
}

// However waits end, no seat is lost and none is made.
func TestSeatsCount(t *testing.T) {
	l := newTestLevel(3)
	l.limits.Patience = time.Millisecond
	var busy, most int
	var mu sync.Mutex
	work := func(i int) {
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
		l.Release()
	}
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			flow := string(rune('a' + i%3))
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
				if l.Acquire(ctx, flow) == nil {
					work(i)
				}
				if i%5 == 0 && l.Resume(ctx, flow) == nil {
					work(i)
				}
				cancel()
			}
		})
	}
	group.Wait()
	if most > 3 {
		t.Errorf("%d at once", most)
	}
	left(t, l)
}

// What a flow and a level hold is bounded, and given back.
func TestHoldings(t *testing.T) {
	l := NewLevel("test", Limits{Bytes: 100, FlowBytes: 60})
	if !l.Hold("a", 60) || l.Hold("a", 1) {
		t.Error("a flow's share is not 60")
	}
	if !l.Hold("b", 40) || l.Hold("c", 1) {
		t.Error("the level's share is not 100")
	}
	l.Drop("a", 30)
	if !l.Hold("c", 30) {
		t.Error("what was dropped is not free")
	}
	l.Drop("a", 30)
	l.Drop("b", 40)
	l.Drop("c", 30)
	left(t, l)
}

func TestLevelOf(t *testing.T) {
	l := NewLevels()
	for _, c := range []struct {
		subject Subject
		want    *Level
	}{
		{Subject{User: "admin", Groups: []string{"system:masters"}}, l.Exempt},
		{Subject{User: "system:anonymous", Health: true}, l.Exempt},
		{Subject{User: "system:node:n", Groups: []string{"system:nodes"}, Group: "coordination.k8s.io", Resource: "leases"}, l.Nodes},
		{Subject{User: "system:kube-scheduler"}, l.System},
		{Subject{User: "system:serviceaccount:kube-system:x", Groups: []string{"system:serviceaccounts", kubeSystemAccounts}}, l.System},
		{Subject{User: "system:serviceaccount:a:x", Groups: []string{"system:serviceaccounts"}}, l.Workloads},
		{Subject{User: "system:serviceaccount:a:x", Groups: []string{"system:serviceaccounts"}, Group: "coordination.k8s.io", Resource: "leases"}, l.Leader},
		{Subject{User: "jane", Group: "coordination.k8s.io", Resource: "leases"}, l.Everybody},
		{Subject{User: "system:anonymous"}, l.Everybody},
	} {
		if got := l.Of(c.subject); got != c.want {
			t.Errorf("%+v: %s, want %s", c.subject, got.Name, c.want.Name)
		}
	}
}
