package volume

import (
	"context"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// queue holds pods whose volumes are to be looked at again, each once.
type queue struct {
	ready chan struct{} // holds one value while pods are waiting

	mu   sync.Mutex
	pods []types.UID // guarded by mu
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

func (q *queue) add(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.pods, uid) {
		q.pods = append(q.pods, uid)
	}
	q.signal()
}

// signal tells one taker; q.mu is held.
func (q *queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take waits for the next pod; false means that ctx ended.
func (q *queue) take(ctx context.Context) (types.UID, bool) {
	for {
		select {
		case <-ctx.Done():
			return "", false
		case <-q.ready:
		}
		q.mu.Lock()
		if len(q.pods) == 0 {
			q.mu.Unlock()
			continue
		}
		uid := q.pods[0]
		q.pods = slices.Delete(q.pods, 0, 1)
		if len(q.pods) > 0 {
			q.signal()
		}
		q.mu.Unlock()
		return uid, true
	}
}
