package pod

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"orch/agent/probe"
)

// probing is what the probes of one running container have found so far.
type probing struct {
	cancel  context.CancelFunc
	calm    context.CancelFunc // ends startup and liveness probes only
	started bool
	failed  probeKind // liveness or startup: the container has to go
	gated   bool      // has a readiness probe
	ready   bool
}

// syncProbes starts the probes of containers that run and ends those of
// containers that do not.
func (w *worker) syncProbes(ctx context.Context, v *view) {
	running := make(map[string]bool)
	if w.pod != nil && !w.gone {
		for _, u := range units(w.pod) {
			c := w.seen.latest(u.Name)
			if !c.running() || w.starting[u.Name] {
				continue
			}
			running[c.ID] = true
			if w.probes[c.ID] == nil {
				w.probes[c.ID] = w.startProbes(ctx, u, c)
			}
		}
	}
	for id, p := range w.probes {
		if w.down() { // nothing will be restarted, but endpoints still want readiness
			p.calm()
		}
		if !running[id] {
			p.cancel()
			delete(w.probes, id)
		}
	}
}

// startProbes begins with the startup probe; the others wait for its success.
// A container that we adopt keeps what its status said before.
func (w *worker) startProbes(ctx context.Context, u unit, c *container) *probing {
	ctx, cancel := context.WithCancel(ctx)
	vital, calm := context.WithCancel(ctx)
	p := &probing{cancel: cancel, calm: calm, gated: u.ReadinessProbe != nil}
	if u.class == ephemeral || u.class == initial {
		p.started, p.gated = true, false
		return p
	}
	before := w.statusBefore(u.Name, c.ID)
	p.ready = before != nil && before.Ready
	if u.StartupProbe != nil && (before == nil || before.Started == nil || !*before.Started) {
		w.probe(vital, u, c, startupProbe, u.StartupProbe, func(ok bool) {
			p.started = ok
			if ok {
				w.probeOn(ctx, vital, u, c, p)
			} else {
				p.failed = startupProbe
			}
		})
		return p
	}
	p.started = true
	w.probeOn(ctx, vital, u, c, p)
	return p
}

// probeOn starts the probes of a container that has started.
func (w *worker) probeOn(ctx, vital context.Context, u unit, c *container, p *probing) {
	if u.ReadinessProbe != nil {
		w.probe(ctx, u, c, readinessProbe, u.ReadinessProbe, func(ok bool) { p.ready = ok })
	}
	if u.LivenessProbe != nil {
		w.probe(vital, u, c, livenessProbe, u.LivenessProbe, func(ok bool) {
			if !ok {
				p.failed = livenessProbe
			}
		})
	}
}

// probe runs one probe beside the worker, which applies verdict when it has
// changed. A startup probe ends with its first verdict, a liveness probe with
// its first failure.
func (w *worker) probe(ctx context.Context, u unit, c *container, kind probeKind, p *corev1.Probe, verdict func(ok bool)) {
	target := probe.Target{Container: u.Container, ID: c.ID, PodIP: first(w.addresses()), Exec: w.m.Exec}
	name := strings.ToUpper(string(kind[:1])) + string(kind[1:])
	ref := objectReference(w.pod, &u)
	heard := func(a probe.Answer) {
		switch {
		case a.Warning:
			w.m.cfg.Events.Event(ref, corev1.EventTypeWarning, "ProbeWarning", fmt.Sprintf("%s probe warning: %s", name, a.Text))
		case a.Outcome == probe.Broken:
			w.m.cfg.Events.Event(ref, corev1.EventTypeWarning, "Unhealthy",
				fmt.Sprintf("%s probe errored and resulted in unknown state: %s", name, a.Text))
		default:
			w.m.cfg.Events.Event(ref, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", name, a.Text))
		}
	}
	known, last := false, false
	w.tasks.Go(func() {
		probe.Run(ctx, p, target, c.Started, heard, func(ok bool) bool {
			if known && ok == last {
				return true
			}
			known, last = true, ok
			w.mail.post(func() {
				if ctx.Err() == nil {
					verdict(ok)
				}
			})
			return kind == readinessProbe || ok && kind == livenessProbe
		})
	})
}

// readiness gives the verdicts by container ID for containers that have a
// readiness probe.
func (w *worker) readiness() map[string]bool {
	all := make(map[string]bool)
	for id, p := range w.probes {
		if p.gated {
			all[id] = p.ready
		}
	}
	return all
}

// statusBefore is a container's status in the API, if it is about this very
// attempt.
func (w *worker) statusBefore(name, id string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{w.pod.Status.ContainerStatuses, w.pod.Status.InitContainerStatuses} {
		if cs := statusOf(list, name); cs != nil && strings.HasSuffix(cs.ContainerID, "://"+id) {
			return cs
		}
	}
	return nil
}
