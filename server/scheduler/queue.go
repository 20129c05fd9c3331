package scheduler

import (
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// cause is a kind of change in the cluster that may let a refused pod run.
type cause uint

const (
	nodeAdded cause = 1 << iota
	nodeCapacity
	nodeLabel
	nodeTaint
	nodeGone
	namespaceLabel
	podGone // or it asks for less
	podPlaced
	claimChanged

	anything = ^cause(0)
)

// Back-off of refused pods.
const (
	initialBackoff = time.Second
	maxBackoff     = 10 * time.Second
)

// waiting is a pod in the queue.
type waiting struct {
	pod      *pod
	since    time.Time // when it was first queued
	attempts int
	ready    time.Time // not before
	causes   cause     // what may wake it; 0: it is to be tried when ready
	index    int       // in its heap; -1 in none
}

// queue holds the pods that wait for a node: those to try now (by priority,
// then age), those that sit out a back-off, and those that were refused and
// wait for a change that matters to them. It belongs to one goroutine and has
// no clock of its own.
type queue struct {
	pods    map[types.UID]*waiting
	active  activeHeap
	backoff backoffHeap
	refused map[types.UID]*waiting
}

func newQueue() *queue {
	return &queue{pods: map[types.UID]*waiting{}, refused: map[types.UID]*waiting{}}
}

// add queues a pod, or takes over its new state and tries again.
func (q *queue) add(p *pod, now time.Time) {
	w := q.pods[p.UID]
	if w == nil {
		w = &waiting{pod: p, since: now, index: -1}
		q.pods[p.UID] = w
	}
	q.detach(w)
	w.pod = p
	q.route(w, now)
}

// update takes over the new state of a queued pod without waking it.
func (q *queue) update(p *pod) bool {
	w := q.pods[p.UID]
	if w != nil {
		w.pod = p
	}
	return w != nil
}

func (q *queue) remove(uid types.UID) {
	if w := q.pods[uid]; w != nil {
		q.detach(w)
		delete(q.pods, uid)
	}
}

// pop takes the next pod to try; the pod stays known until remove.
func (q *queue) pop(now time.Time) *waiting {
	q.flush(now)
	if len(q.active) == 0 {
		return nil
	}
	w := heap.Pop(&q.active).(*waiting)
	w.attempts++
	return w
}

// refuse puts a tried pod aside until one of causes happens.
func (q *queue) refuse(w *waiting, causes cause, now time.Time) {
	if q.pods[w.pod.UID] != w {
		return // deleted meanwhile
	}
	w.ready = now.Add(backoffAfter(w.attempts))
	w.causes = causes
	q.refused[w.pod.UID] = w
}

// retry tries a pod again after its back-off, whatever happens.
func (q *queue) retry(w *waiting, now time.Time) {
	if q.pods[w.pod.UID] != w {
		return
	}
	w.ready = now.Add(backoffAfter(w.attempts))
	q.route(w, now)
}

func backoffAfter(attempts int) time.Duration {
	d := initialBackoff
	for i := 1; i < attempts && d < maxBackoff; i++ {
		d *= 2
	}
	return min(d, maxBackoff)
}

// happened wakes the refused pods for which what matters.
func (q *queue) happened(what cause, now time.Time) {
	for uid, w := range q.refused {
		if w.causes&what != 0 {
			delete(q.refused, uid)
			q.route(w, now)
		}
	}
}

// wake returns when the queue next changes by itself; false: never.
func (q *queue) wake() (time.Time, bool) {
	if len(q.active) > 0 {
		return time.Time{}, true
	}
	if len(q.backoff) > 0 {
		return q.backoff[0].ready, true
	}
	return time.Time{}, false
}

func (q *queue) flush(now time.Time) {
	for len(q.backoff) > 0 && !q.backoff[0].ready.After(now) {
		heap.Push(&q.active, heap.Pop(&q.backoff))
	}
}

func (q *queue) route(w *waiting, now time.Time) {
	w.causes = 0
	if w.ready.After(now) {
		heap.Push(&q.backoff, w)
	} else {
		heap.Push(&q.active, w)
	}
}

func (q *queue) detach(w *waiting) {
	delete(q.refused, w.pod.UID)
	if w.index < 0 {
		return
	}
	if w.index < len(q.active) && q.active[w.index] == w {
		heap.Remove(&q.active, w.index)
	} else if w.index < len(q.backoff) && q.backoff[w.index] == w {
		heap.Remove(&q.backoff, w.index)
	}
}

type activeHeap []*waiting

func (h activeHeap) Len() int { return len(h) }
func (h activeHeap) Less(i, j int) bool {
	if h[i].pod.priority != h[j].pod.priority {
		return h[i].pod.priority > h[j].pod.priority
	}
	return h[i].since.Before(h[j].since)
}
func (h activeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *activeHeap) Push(x any)   { w := x.(*waiting); w.index = len(*h); *h = append(*h, w) }
func (h *activeHeap) Pop() any     { return popLast((*[]*waiting)(h)) }

type backoffHeap []*waiting

func (h backoffHeap) Len() int           { return len(h) }
func (h backoffHeap) Less(i, j int) bool { return h[i].ready.Before(h[j].ready) }
func (h backoffHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *backoffHeap) Push(x any)        { w := x.(*waiting); w.index = len(*h); *h = append(*h, w) }
func (h *backoffHeap) Pop() any          { return popLast((*[]*waiting)(h)) }

func popLast(h *[]*waiting) any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	w.index = -1
	return w
}
