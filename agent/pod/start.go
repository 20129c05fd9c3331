package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// startError is why a container did not start: the reason and message that its
// status shows.
type startError struct {
	reason, message string
	delay           time.Duration // before the next try; 0: the usual back-off
	event           string        // instead of the message
	quiet           bool          // the event was already sent
	unsure          bool          // something may have been made nevertheless
}

// overtaken is a start that news has ended before it was complete.
func overtaken(ctx context.Context) *startError {
	return &startError{reason: "ContainerCreating", message: fmt.Sprint(context.Cause(ctx)), quiet: true}
}

func (e *startError) Error() string { return e.reason + ": " + e.message }

// launchOrder is all that a start needs to know, taken from the worker's state.
type launchOrder struct {
	pod     *corev1.Pod // with the resources that were allocated
	unit    unit
	sandbox *sandbox
	handler string
	attempt int32
	backoff time.Duration
	target  string // container ID whose processes an ephemeral container sees
	ips     []string
	mounts  map[string]Mount
}

func (w *worker) startContainer(ctx context.Context, u unit) func() func() {
	prev := w.seen.latest(u.Name)
	o := launchOrder{
		pod: w.allocatedPod(), unit: u, sandbox: w.seen.box(), handler: w.handlers,
		attempt: w.m.nextAttempt(w.pod, u, prev), ips: w.addresses(), mounts: w.mounts,
	}
	if a, ok := findUnit(o.pod, u.Name); ok {
		o.unit = a
	}
	if prev != nil {
		o.backoff = backoffFor(prev)
	}
	if t := w.seen.latest(u.target); t != nil {
		o.target = t.ID
	}
	w.starting[u.Name] = true
	return func() func() {
		r, fault := w.m.start(ctx, o)
		return func() {
			delete(w.starting, u.Name)
			w.take(r)
			w.started(ctx, u, fault)
		}
	}
}

// started books the outcome of a start.
func (w *worker) started(ctx context.Context, u unit, fault *startError) {
	if fault == nil {
		delete(w.waiting, u.Name)
		delete(w.retries, u.Name)
		return
	}
	if errors.Is(context.Cause(ctx), errOvertaken) || ctx.Err() != nil {
		return
	}
	w.waiting[u.Name] = corev1.ContainerStateWaiting{Reason: fault.reason, Message: fault.message}
	if fault.delay > 0 {
		w.retries[u.Name] = retry{at: w.m.now().Add(fault.delay)}
	} else {
		w.fail(u.Name, time.Second, 10*time.Second)
	}
	if !fault.quiet {
		w.event(&u, corev1.EventTypeWarning, "Failed", "Error: "+cmp.Or(fault.event, fault.message))
	}
}

// nextAttempt numbers a container's attempts: after the last one known to the
// runtime, else after the last one that left a log.
func (m *Manager) nextAttempt(pod *corev1.Pod, u unit, prev *container) int32 {
	if prev != nil {
		return prev.Attempt + 1
	}
	return attemptAfterLogs(filepath.Join(m.podLogDir(pod), u.Name))
}

var logName = regexp.MustCompile(`^(\d+)\.log(\..*)?$`)

func attemptAfterLogs(dir string) int32 {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0 // no log, no attempt
	}
	next := int32(0)
	for _, f := range files {
		if m := logName.FindStringSubmatch(f.Name()); m != nil {
			if n, err := strconv.ParseInt(m[1], 10, 32); err == nil {
				next = max(next, int32(n)+1)
			}
		}
	}
	return next
}

// start pulls the image, creates and starts the container and runs its
// postStart hook. The report holds the container as far as it came.
func (m *Manager) start(ctx context.Context, o launchOrder) (report, *startError) {
	image, fault := m.images.ensure(ctx, o)
	if fault != nil {
		return report{}, fault
	}
	id, fault := m.create(ctx, o, image)
	if fault != nil {
		return report{unsure: fault.unsure}, fault
	}
	if ctx.Err() != nil {
		m.starts.Release(1)
		return m.containerReport(ctx, id), overtaken(ctx)
	}
	ref := objectReference(o.pod, &o.unit)
	m.cfg.Events.Event(ref, corev1.EventTypeNormal, "Created", "Container created")
	if _, err := m.cfg.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		m.starts.Release(1)
		text := message(err)
		m.cfg.Events.Event(ref, corev1.EventTypeWarning, "Failed", scrub("Error: "+text, id, o.unit.Name))
		return m.containerReport(ctx, id), &startError{reason: "RunContainerError", message: text, quiet: true}
	}
	m.starts.Release(1)
	m.cfg.Events.Event(ref, corev1.EventTypeNormal, "Started", "Container started")
	if hook := o.unit.Lifecycle; hook != nil && hook.PostStart != nil && ctx.Err() == nil {
		if err := m.runHook(ctx, o.pod, o.unit, id, first(o.ips), hook.PostStart); err != nil {
			return m.afterFailedHook(ctx, o, id, err)
		}
	}
	return m.containerReport(ctx, id), nil
}

// create makes the container. On success it holds one of the start tickets,
// which the caller gives back once the container runs.
func (m *Manager) create(ctx context.Context, o launchOrder, image imageRef) (string, *startError) {
	config, err := m.containerConfig(ctx, o, image)
	if err != nil {
		return "", &startError{reason: "CreateContainerConfigError", message: message(err)}
	}
	box, err := m.sandboxConfig(o.pod, o.sandbox.Attempt)
	if err != nil {
		return "", &startError{reason: "CreateContainerConfigError", message: message(err)}
	}
	if err := m.starts.Acquire(ctx, 1); err != nil {
		return "", overtaken(ctx)
	}
	made, err := m.cfg.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: o.sandbox.ID, Config: config, SandboxConfig: box,
	})
	if err != nil {
		m.starts.Release(1)
		return "", &startError{reason: "CreateContainerError", message: message(err), unsure: true}
	}
	m.linkLog(o.pod, o.unit.Name, made.GetContainerId(), config.LogPath)
	return made.GetContainerId(), nil
}

// afterFailedHook kills a container whose postStart hook failed.
func (m *Manager) afterFailedHook(ctx context.Context, o launchOrder, id string, hook error) (report, *startError) {
	if ctx.Err() != nil {
		return m.containerReport(ctx, id), overtaken(ctx)
	}
	ref := objectReference(o.pod, &o.unit)
	// The message could hold secrets of the workload: it goes to the status only.
	m.cfg.Events.Event(ref, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	m.cfg.Events.Event(ref, corev1.EventTypeNormal, "Killing", "FailedPostStartHook")
	grace := int64(leastGrace)
	if g := o.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = max(grace, *g)
	}
	_, err := m.cfg.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
	if err != nil {
		hook = fmt.Errorf("%w; stop container: %w", hook, err)
	}
	return m.containerReport(ctx, id), &startError{reason: "PostStartHookError", message: hook.Error(), quiet: true}
}
