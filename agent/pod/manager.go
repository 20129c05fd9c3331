package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Manager runs the pods of this node.
type Manager struct {
	cfg       Config
	log       *slog.Logger
	images    *images
	calls     *calls // cfg.Runtime
	cgroups   *cgroups
	starts    *semaphore.Weighted // sandboxes and containers being started
	pageSizes []pageSize
	users     userBlocks

	dirty chan struct{} // something may have been left in the runtime

	mu      sync.Mutex
	workers map[types.UID]*worker
	listed  bool // the API's pods are all known
	running sync.WaitGroup
	ctx     context.Context // of Run; set once, before any worker
}

// New makes a manager. It does no I/O.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger.With("component", "pod"),
		workers: make(map[types.UID]*worker),
		dirty:   make(chan struct{}, 1),
		starts:  semaphore.NewWeighted(cfg.Starts),
	}
	m.calls = newCalls(cfg.Runtime, &m.running)
	m.cfg.Runtime = m.calls
	m.images = newImages(m)
	m.cgroups = newCgroups(cfg.CgroupFS, cfg.CgroupParent)
	return m, nil
}

func (m *Manager) now() time.Time { return m.cfg.Now() }

// Run runs the node's pods until ctx ends. Pods keep running after that, and
// are taken over by the next Run.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.cgroups.open(); err != nil {
		return fmt.Errorf("open cgroups: %w", err)
	}
	if err := m.dropLinks(); err != nil {
		m.log.Warn("cannot remove links to logs that are gone", "dir", m.cfg.LogLinks, "err", err)
	}
	m.pageSizes = machinePageSizes("/sys/kernel/mm/hugepages")
	if err := m.images.pulled.resume(ctx, m.cfg.Images); err != nil && ctx.Err() == nil {
		m.log.Warn("cannot read with what images were pulled", "err", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	// Workers and pulls go on until everything that feeds them has stopped.
	defer m.windUp()
	m.ctx = ctx
	m.images.tasks, m.images.ctx = &m.running, func() context.Context { return ctx }
	// What the runtime holds is read before any pod of the API is acted on:
	// otherwise a running container would be started a second time.
	known := make(chan struct{})
	group.Go(func() error { return m.follow(ctx, sync.OnceFunc(func() { close(known) })) })
	group.Go(func() error {
		select {
		case <-known:
			m.watch(ctx)
		case <-ctx.Done():
		}
		return nil
	})
	group.Go(func() error { return m.rotateLogs(ctx) })
	group.Go(func() error { return m.sweepRuntime(ctx) })
	return group.Wait()
}

// endBound is how long Run waits, when it is told to end, for what its workers
// have begun. A pod may hold one up for ever, as by a file system that does not
// answer; the others have long left behind only what the next Run takes up.
const endBound = 10 * time.Second

// windUp waits until the workers have ended, at most endBound.
func (m *Manager) windUp() {
	ended := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		m.running.Wait()
		close(ended)
	})
	t := time.NewTimer(endBound)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		m.log.Warn("some pods hold their workers up; not waiting for them any longer", "after", endBound)
	}
}

// watch keeps the workers' pods as the API has them.
func (m *Manager) watch(ctx context.Context) {
	selector := fields.OneTermEqualSelector("spec.nodeName", m.cfg.NodeName).String()
	source := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (kobject, error) {
			o.FieldSelector = selector
			return m.cfg.Client.CoreV1().Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (kwatch, error) {
			o.FieldSelector = selector
			return m.cfg.Client.CoreV1().Pods("").Watch(ctx, o)
		},
	}, m.cfg.Client)
	reflector := cache.NewReflectorWithOptions(source, &corev1.Pod{}, arrivals{m}, cache.ReflectorOptions{Name: "pods of this node"})
	reflector.RunWithContext(ctx)
}

// arrivals takes the reflector's news.
type arrivals struct{ m *Manager }

func (a arrivals) Add(obj any) error    { a.m.arrive(obj.(*corev1.Pod)); return nil }
func (a arrivals) Update(obj any) error { a.m.arrive(obj.(*corev1.Pod)); return nil }
func (a arrivals) Resync() error        { return nil }

func (a arrivals) Delete(obj any) error {
	a.m.leave(obj.(*corev1.Pod).UID)
	return nil
}

// Replace takes a whole list: workers whose pod is not in it clean up. The
// first one also tells which pods the runtime has without the API knowing them.
func (a arrivals) Replace(list []any, _ string) error {
	here := make(map[types.UID]bool, len(list))
	for _, obj := range list {
		pod := obj.(*corev1.Pod)
		here[pod.UID] = true
		a.m.arrive(pod)
	}
	a.m.mu.Lock()
	a.m.listed = true
	var missing []types.UID
	for uid := range a.m.workers {
		if !here[uid] {
			missing = append(missing, uid)
		}
	}
	a.m.mu.Unlock()
	for _, uid := range missing {
		a.m.leave(uid)
	}
	a.m.sweep(here)
	return nil
}

func (m *Manager) arrive(pod *corev1.Pod) {
	if m.cfg.Observed != nil {
		m.cfg.Observed(pod)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[pod.UID]
	if w == nil {
		if terminal(pod.Status.Phase) && pod.DeletionTimestamp == nil {
			return // nothing of it is here, and nothing is to be done
		}
		w = m.hire(pod.UID)
	}
	w.mail.post(func() { w.setPod(pod) })
}

func (m *Manager) leave(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[uid]; w != nil {
		w.mail.post(func() { w.gone = true })
		return
	}
	m.running.Go(func() { m.cleanUp(m.ctx, uid) })
}

// sweep removes what pods that nobody knows any more left on the disk.
func (m *Manager) sweep(here map[types.UID]bool) {
	for _, uid := range m.leftovers() {
		m.mu.Lock()
		known := here[uid] || m.workers[uid] != nil
		m.mu.Unlock()
		if !known {
			m.running.Go(func() { m.cleanUp(m.ctx, uid) })
		}
	}
}

// cleanUp removes everything of a pod that has no containers here.
func (m *Manager) cleanUp(ctx context.Context, uid types.UID) {
	for delay := time.Second; ; delay = min(2*delay, sweepDelayMax) {
		err := errors.Join(m.cfg.Volumes.Remove(ctx, uid), m.cgroups.remove(uid))
		if err == nil {
			err = m.removeDirs(uid)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		m.log.Warn("remove what a pod left", "uid", string(uid), "err", err)
		if !pause(ctx, delay) {
			return
		}
	}
}

// hire makes a worker. m.mu is held.
func (m *Manager) hire(uid types.UID) *worker {
	w := newWorker(m, uid)
	m.workers[uid] = w
	m.running.Go(func() {
		w.run(m.ctx)
		if m.ctx.Err() != nil {
			return
		}
		m.dismiss(w)
	})
	return w
}

func (m *Manager) dismiss(w *worker) {
	m.mu.Lock()
	delete(m.workers, w.uid)
	m.mu.Unlock()
	m.images.forget(w.uid)
	m.stale()
	if m.cfg.Removed != nil {
		m.cfg.Removed(w.uid)
	}
}

// Listed tells whether all pods that the API has for this node are known.
func (m *Manager) Listed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.listed
}

// deliver hands a runtime's report to the worker of its pod. A pod that has
// none was started by an earlier run of the agent.
func (m *Manager) deliver(r report) {
	if r.whole { // a single event may come when the pod is long erased
		for _, sandbox := range r.sandboxes {
			m.users.adopt(r.uid, sandbox)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[r.uid]
	if w == nil {
		if !r.whole {
			return // news of something that was removed
		}
		w = m.hire(r.uid)
		w.mail.post(func() { w.adopted = true })
	}
	w.mail.post(func() { w.take(r) })
	if r.whole && m.listed {
		w.mail.post(func() { w.gone = w.gone || w.pod == nil })
	}
}

// setPod takes a newer state of the API object.
func (w *worker) setPod(pod *corev1.Pod) {
	if w.pod == nil {
		w.log = w.log.With("namespace", pod.Namespace, "pod", pod.Name)
		if !w.adopted && pod.Status.StartTime == nil && pod.DeletionTimestamp == nil {
			w.pod = pod
			w.admit()
			return
		}
	}
	w.pod = pod
}

// take merges news from the runtime.
func (w *worker) take(r report) {
	for _, c := range r.containers {
		if !w.seen.exited(c.status.GetId()) {
			w.m.lastWords(c.status)
		}
	}
	w.seen.merge(r)
	w.unsure = w.unsure && !r.whole || r.unsure
}
