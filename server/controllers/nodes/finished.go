package nodes

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/loop"
)

// finishedPods remembers finished pods by age, and since when nodes are missed.
type finishedPods struct {
	mu     sync.Mutex
	pods   map[types.UID]finishedPod
	limit  int
	missed map[string]time.Time
}

type finishedPod struct {
	key     loop.Key
	created time.Time
}

func newFinishedPods() *finishedPods {
	return &finishedPods{pods: map[types.UID]finishedPod{}, limit: maxFinishedPods, missed: map[string]time.Time{}}
}

// observe takes note of a pod's state and gives the pods that are too many.
func (f *finishedPods) observe(p *corev1.Pod, deleted bool) []loop.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	if deleted || p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		delete(f.pods, p.UID)
		return nil
	}
	f.pods[p.UID] = finishedPod{loop.KeyOf(p), p.CreationTimestamp.Time}
	if len(f.pods) <= f.limit {
		return nil
	}
	var keys []loop.Key
	for _, old := range f.oldest(len(f.pods) - f.limit) {
		keys = append(keys, f.pods[old].key)
	}
	return keys
}

// surplus tells whether p is one of the oldest of too many.
func (f *finishedPods) surplus(p *corev1.Pod) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, finished := f.pods[p.UID]
	return finished && len(f.pods) > f.limit && slices.Contains(f.oldest(len(f.pods)-f.limit), p.UID)
}

func (f *finishedPods) oldest(n int) []types.UID {
	uids := make([]types.UID, 0, len(f.pods))
	for uid := range f.pods {
		uids = append(uids, uid)
	}
	slices.SortFunc(uids, func(a, b types.UID) int { return f.pods[a].created.Compare(f.pods[b].created) })
	return uids[:n]
}

// lostFor is how long a node has been missed; the first question starts the count.
func (f *finishedPods) lostFor(node string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, ok := f.missed[node]
	if !ok || now.Sub(since) > 10*quarantine {
		f.missed[node] = now
		return 0
	}
	return now.Sub(since)
}
