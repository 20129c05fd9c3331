package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// leastGrace is what every container gets between SIGTERM and SIGKILL.
const leastGrace = 2

// grace gives the seconds that a container has to stop in.
func (w *worker) grace(k killing) int64 {
	switch {
	case k.grace != nil:
		return max(*k.grace, leastGrace)
	case w.pod == nil:
		n, err := strconv.ParseInt(k.container.CRI.GetAnnotations()[noteGrace], 10, 64)
		if err != nil {
			n = corev1.DefaultTerminationGracePeriodSeconds
		}
		return max(n, leastGrace)
	case w.pod.DeletionGracePeriodSeconds != nil:
		return max(*w.pod.DeletionGracePeriodSeconds, leastGrace)
	case k.probe != nil && k.probe.TerminationGracePeriodSeconds != nil:
		return max(*k.probe.TerminationGracePeriodSeconds, leastGrace)
	case w.pod.Spec.TerminationGracePeriodSeconds != nil:
		return max(*w.pod.Spec.TerminationGracePeriodSeconds, leastGrace)
	}
	return leastGrace
}

// stopping is one container on its way down.
type stopping struct {
	unit     unit
	pod      *corev1.Pod // for an orphan: as much as its labels tell
	id       string
	grace    int64
	preStop  *corev1.LifecycleHandler
	turn     []<-chan struct{} // those that have to be down before
	down     chan struct{}     // closed when this one is
	podIP    string
	sentence string
}

func (w *worker) killContainers(ctx context.Context, kills []killing) func() func() {
	all := make([]*stopping, 0, len(kills))
	for _, k := range kills {
		s := w.stopping(k)
		w.flight.grace[s.id] = s.grace
		all = append(all, s)
		if !w.said[s.id] {
			w.said[s.id] = true
			w.m.cfg.Events.Event(objectReference(s.pod, &s.unit), corev1.EventTypeNormal, "Killing", s.sentence)
		}
	}
	order(all)
	force := func() {}
	if w.down() {
		force = w.force(kill.key())
	}
	return func() func() {
		force()
		var wg sync.WaitGroup
		reports := make([]report, len(all))
		errs := make([]error, len(all))
		for i, s := range all {
			wg.Go(func() { reports[i], errs[i] = w.bringDown(ctx, s) })
		}
		wg.Wait()
		return func() {
			failed := false
			for i, r := range reports {
				w.take(r)
				if errs[i] != nil && ctx.Err() == nil {
					failed = true
					w.log.Warn("stop container", "container", all[i].unit.Name, "err", errs[i])
				}
			}
			if failed {
				w.fail(kill.key(), time.Second, time.Minute)
			} else {
				delete(w.retries, kill.key())
			}
		}
	}
}

func (w *worker) stopping(k killing) *stopping {
	c := k.container
	s := &stopping{id: c.ID, grace: w.grace(k), down: make(chan struct{}), sentence: k.message, pod: w.pod}
	if ips := w.seen.ips(); len(ips) > 0 {
		s.podIP = ips[0]
	}
	if w.pod != nil {
		s.unit, _ = findUnit(w.pod, c.Name)
	}
	if s.unit.Container == nil {
		s.pod, s.unit = restored(c)
	}
	if s.unit.Lifecycle != nil && !w.stopped[c.ID] {
		s.preStop = s.unit.Lifecycle.PreStop
	}
	if s.sentence == "" {
		s.sentence = "Stopping container " + c.Name
	}
	return s
}

// restored gives what a container's labels and annotations tell of its spec.
func restored(c *container) (*corev1.Pod, unit) {
	pod := &corev1.Pod{}
	labels, notes := c.CRI.GetLabels(), c.CRI.GetAnnotations()
	pod.Name, pod.Namespace, pod.UID = labels[labelPod], labels[labelNamespace], podUID(labels[labelUID])
	spec := &corev1.Container{Name: c.Name}
	if raw := notes[notePreStop]; raw != "" {
		spec.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{}}
		if json.Unmarshal([]byte(raw), spec.Lifecycle.PreStop) != nil {
			spec.Lifecycle = nil
		}
	}
	if raw := notes[notePorts]; raw != "" {
		_ = json.Unmarshal([]byte(raw), &spec.Ports) // only named ports of a hook need them
	}
	return pod, unit{Container: spec, class: regular}
}

// order makes sidecars wait for the regular containers, and each for the
// sidecars that started after it (KEP-753).
func order(all []*stopping) {
	var mains []<-chan struct{}
	var sidecars []*stopping
	for _, s := range all {
		switch s.unit.class {
		case regular:
			mains = append(mains, s.down)
		case sidecar:
			sidecars = append(sidecars, s)
		}
	}
	if len(sidecars) == 0 || len(all) == 1 {
		return
	}
	position := func(s *stopping) int {
		for i := range s.pod.Spec.InitContainers {
			if s.pod.Spec.InitContainers[i].Name == s.unit.Name {
				return i
			}
		}
		return -1
	}
	for _, s := range sidecars {
		s.turn = mains
		for _, o := range sidecars {
			if position(o) > position(s) {
				s.turn = append(s.turn[:len(s.turn):len(s.turn)], o.down)
			}
		}
	}
}

// bringDown runs the preStop hook, waits for the container's turn and stops it.
func (w *worker) bringDown(ctx context.Context, s *stopping) (report, error) {
	defer close(s.down)
	begin := w.m.now()
	left := func() int64 { return s.grace - int64(w.m.now().Sub(begin)/time.Second) }
	if s.preStop != nil {
		w.preStop(ctx, s)
		if ctx.Err() != nil {
			return report{}, ctx.Err()
		}
	}
	timeout := time.NewTimer(time.Duration(left()) * time.Second)
	defer timeout.Stop()
wait:
	for _, turn := range s.turn {
		select {
		case <-turn:
		case <-timeout.C:
			break wait
		case <-ctx.Done():
			return report{}, ctx.Err()
		}
	}
	_, err := w.m.cfg.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{
		ContainerId: s.id, Timeout: max(left(), leastGrace),
	})
	if notFoundIsFine(err) != nil {
		return report{}, err
	}
	return w.m.containerReport(ctx, s.id), nil
}

// preStop runs the hook for at most the grace period.
func (w *worker) preStop(ctx context.Context, s *stopping) {
	hook, cancel := context.WithTimeout(ctx, time.Duration(s.grace)*time.Second)
	defer cancel()
	err := w.m.runHook(hook, s.pod, s.unit, s.id, s.podIP, s.preStop)
	if ctx.Err() != nil {
		return // to be run again by whoever overtook
	}
	w.mail.post(func() { w.stopped[s.id] = true })
	if err != nil && hook.Err() == nil {
		w.m.cfg.Events.Event(objectReference(s.pod, &s.unit), corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
	}
}

// containerReport reads one container's state after an action of ours, so that
// nobody has to wait for the event.
func (m *Manager) containerReport(ctx context.Context, id string) report {
	got, err := m.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return report{unsure: true}
	}
	return report{containers: []containerReport{{status: got.GetStatus()}}}
}

// scrub keeps a container's ID out of events, which would not aggregate.
func scrub(text, id, name string) string {
	if id == "" {
		return text
	}
	return strings.ReplaceAll(text, id, name)
}

func hookFailure(what string, u unit, pod *corev1.Pod, err error, output []byte) error {
	if output == nil {
		return fmt.Errorf("%s for Container %q in Pod %q failed - error: %w", what, u.Name, describe(pod), err)
	}
	return fmt.Errorf("%s for Container %q in Pod %q failed - error: %w, message: %q", what, u.Name, describe(pod), err, output)
}
