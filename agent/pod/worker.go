package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// worker brings one pod from what it is to what it should be. All fields below
// mail belong to the goroutine of run; others post to mail and read snapshot.
type worker struct {
	m        *Manager
	uid      types.UID
	log      *slog.Logger
	tasks    sync.WaitGroup // everything the worker started
	snapshot atomic.Pointer[Snapshot]
	mail     *mailbox

	pod     *corev1.Pod // as the API last showed it; nil for an orphan
	gone    bool
	unsure  bool // the runtime may hold something that seen does not
	adopted bool // found running when the agent started
	seen    observed
	halt    *halt

	flight  *flight // the step under way
	mounts  map[string]Mount
	volumes volumes
	retries map[string]retry
	// waiting is why a container that should run does not, by container name.
	waiting map[string]corev1.ContainerStateWaiting
	backed  map[string]string // last attempt a BackOff event was sent for
	// starting are the names of containers that are created and started, their
	// postStart hook included. Until then their status is that of before.
	starting map[string]bool
	stopped  map[string]bool // container IDs whose preStop hook has run
	said     map[string]bool // container IDs whose Killing event was sent

	probes   map[string]*probing // by container ID
	handlers string              // the runtime class's handler

	allocated map[string]corev1.ResourceRequirements
	resizing  resizing
	broken    time.Time // left alone until then, after a panic
	released  bool
	erased    bool
	written   writer
}

// flight is a step under way.
type flight struct {
	step   step
	since  time.Time
	cancel context.CancelCauseFunc
	grace  map[string]int64 // seconds given to each container being killed
}

// errOvertaken cancels a step that news has made pointless.
var errOvertaken = errors.New("overtaken by events")

func newWorker(m *Manager, uid types.UID) *worker {
	return &worker{
		m: m, uid: uid, mail: newMailbox(),
		log:      m.log.With("uid", string(uid)),
		retries:  make(map[string]retry),
		waiting:  make(map[string]corev1.ContainerStateWaiting),
		backed:   make(map[string]string),
		starting: make(map[string]bool),
		stopped:  make(map[string]bool),
		said:     make(map[string]bool),
		probes:   make(map[string]*probing),
	}
}

// run owns the worker until the pod's last trace is gone or ctx ends. The pod
// itself keeps running when ctx ends.
func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.tasks.Wait()
	defer cancel()
	for ctx.Err() == nil {
		wake, done := w.turn(ctx)
		if done {
			return
		}
		w.mail.wait(ctx, w.m.now(), wake)
	}
}

// turn takes the mail and advances. Should one of the two panic, this pod is
// left alone for a while and the others go on.
func (w *worker) turn(ctx context.Context) (wake time.Time, done bool) {
	defer func() {
		if p := recover(); p != nil {
			w.broke(p, debug.Stack())
			wake, done = w.broken, false
		}
	}()
	for _, f := range w.mail.take() {
		f()
	}
	if w.m.now().Before(w.broken) {
		return w.broken, false
	}
	return w.advance(ctx)
}

// brokenFor is how long a pod is left alone after a panic.
const brokenFor = 30 * time.Second

// broke books a panic. Nothing of what was under way is waited for.
func (w *worker) broke(p any, stack []byte) {
	w.log.Error("pod worker panicked", "panic", p, "stack", string(stack))
	w.broken = w.m.now().Add(brokenFor)
	w.flight, w.written.busy, w.volumes.cancel, w.unsure = nil, false, nil, true
	clear(w.starting)
}

// do runs f beside the worker; what f returns is applied by the worker.
func (w *worker) do(f func() func()) {
	w.tasks.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				stack := debug.Stack()
				w.mail.post(func() { w.broke(p, stack) })
			}
		}()
		w.mail.post(f())
	})
}

// advance looks at everything once: it writes down what is, and starts at most
// one step towards what should be. It gives the time to look again.
func (w *worker) advance(ctx context.Context) (wake time.Time, done bool) {
	if w.erased {
		return time.Time{}, true
	}
	if w.pod == nil && !w.gone {
		return time.Time{}, false // found in the runtime; the API will tell
	}
	now := w.m.now()
	deadline := w.consider(now)
	w.allocate()
	v := w.view(now)
	w.syncProbes(ctx, v)
	v = w.view(now) // probes of new containers say whether they count as started
	w.explain(v)
	w.compute(v)
	v.settled = w.written.settled(w.pod)
	if w.volumes.wanted(w, now) {
		w.prepareVolumes(ctx)
	}
	wake = w.proceed(ctx, v)
	w.write(ctx, now) // after a step has begun: its outcome may come soon
	return earliest(wake, deadline, w.volumes.wake(w), w.written.wake()), false
}

// proceed begins the next step, if none is under way. It gives the time to
// look again.
func (w *worker) proceed(ctx context.Context, v *view) time.Time {
	if w.flight != nil {
		w.overtake(v)
		return time.Time{}
	}
	switch s := next(v); s.action {
	case rest:
		return s.wake
	case finish:
		w.halt = &halt{final: true}
		return v.now
	default:
		w.launch(ctx, s, v.now)
		return time.Time{}
	}
}

func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// consider finds reasons to stop that the API object itself holds. It gives
// the time when one will come true.
func (w *worker) consider(now time.Time) time.Time {
	if w.pod == nil || w.halt != nil || w.gone {
		return time.Time{}
	}
	if p := w.pod.Status.Phase; p == corev1.PodFailed || p == corev1.PodSucceeded {
		w.halt = &halt{reason: w.pod.Status.Reason, message: w.pod.Status.Message, final: true}
		return time.Time{}
	}
	if w.pod.Spec.ActiveDeadlineSeconds == nil || w.pod.DeletionTimestamp != nil {
		return time.Time{}
	}
	since := now
	if t := w.startTime(); !t.IsZero() {
		since = t
	}
	end := since.Add(time.Duration(*w.pod.Spec.ActiveDeadlineSeconds) * time.Second)
	if now.Before(end) {
		return end
	}
	message := "Pod was active on the node longer than the specified deadline"
	w.event(nil, corev1.EventTypeNormal, "DeadlineExceeded", message)
	w.halt = &halt{reason: "DeadlineExceeded", message: message}
	return time.Time{}
}

func (w *worker) view(now time.Time) *view {
	v := &view{
		now: now, pod: w.pod, seen: &w.seen, halt: w.halt, gone: w.gone,
		volumes: w.volumes.ready, retries: w.retries, released: w.released, unsure: w.unsure,
		failing: make(map[string]probeKind), started: make(map[string]bool),
	}
	for id, p := range w.probes {
		v.started[id] = p.started
		if p.failed != "" {
			v.failing[id] = p.failed
		}
	}
	v.resize, v.remake = w.resizes()
	return v
}

// explain keeps the waiting reasons in step with crash back-off.
func (w *worker) explain(v *view) {
	if w.pod == nil || v.gone || v.halt != nil || w.pod.DeletionTimestamp != nil {
		return
	}
	for _, u := range units(w.pod) {
		c := w.seen.latest(u.Name)
		if c.running() && !w.starting[u.Name] {
			delete(w.waiting, u.Name)
			continue
		}
		dead, delay := v.backingOff(u)
		if dead == nil {
			continue
		}
		w.waiting[u.Name] = corev1.ContainerStateWaiting{
			Reason:  "CrashLoopBackOff",
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, u.Name, describe(w.pod)),
		}
		if w.backed[u.Name] != dead.ID {
			w.backed[u.Name] = dead.ID
			w.event(&u, corev1.EventTypeWarning, "BackOff",
				fmt.Sprintf("Back-off restarting failed container %s in pod %s", u.Name, describe(w.pod)))
		}
	}
}

// overtake cancels the step under way when the pod has to stop, or has to stop
// sooner than the step assumes.
func (w *worker) overtake(v *view) {
	stopping := v.gone || v.halt != nil || v.pod.DeletionTimestamp != nil
	if !stopping {
		return
	}
	switch w.flight.step.action {
	case createSandbox, start, resize:
		w.flight.cancel(errOvertaken)
	case kill:
		for _, k := range w.flight.step.kills {
			if w.grace(k) < w.flight.grace[k.container.ID] {
				w.flight.cancel(errOvertaken)
				return
			}
		}
	}
}

func (w *worker) launch(ctx context.Context, s step, now time.Time) {
	ctx, cancel := context.WithCancelCause(ctx)
	w.flight = &flight{step: s, since: now, cancel: cancel, grace: make(map[string]int64)}
	run := w.execute(ctx, s)
	w.do(func() func() {
		apply := run()
		return func() {
			w.flight = nil
			apply() // may ask ctx whether the step was overtaken
			cancel(nil)
		}
	})
}

// fail holds back what key names, twice as long each time.
func (w *worker) fail(key string, first, most time.Duration) {
	r := w.retries[key]
	r.delay = min(max(first, 2*r.delay), most)
	r.at = w.m.now().Add(r.delay)
	w.retries[key] = r
	w.m.stale()
}

func (w *worker) event(u *unit, kind, reason, message string) {
	if w.pod == nil {
		return
	}
	w.m.cfg.Events.Event(objectReference(w.pod, u), kind, reason, message)
}

// objectReference names the pod, or one of its containers, in an event.
func objectReference(pod *corev1.Pod, u *unit) *corev1.ObjectReference {
	ref := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name,
		UID: pod.UID, ResourceVersion: pod.ResourceVersion,
	}
	if u == nil {
		return ref
	}
	switch u.class {
	case regular:
		ref.FieldPath = fmt.Sprintf("spec.containers{%s}", u.Name)
	case ephemeral:
		ref.FieldPath = fmt.Sprintf("spec.ephemeralContainers{%s}", u.Name)
	default:
		ref.FieldPath = fmt.Sprintf("spec.initContainers{%s}", u.Name)
	}
	return ref
}

// startTime is when this node took the pod on.
func (w *worker) startTime() time.Time {
	if w.pod != nil && w.pod.Status.StartTime != nil {
		return w.pod.Status.StartTime.Time
	}
	if t := w.written.status.StartTime; t != nil {
		return t.Time
	}
	return time.Time{}
}
