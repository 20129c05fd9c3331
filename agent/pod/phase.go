package pod

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// phase sets a pod's phase, reason and message from its containers' statuses.
// A terminal phase is never left, and never entered while a container runs.
func (a account) phase(s *corev1.PodStatus) {
	v := a.view
	if terminal(v.pod.Status.Phase) {
		return // s began as a copy of it
	}
	was := a.old.Phase
	if terminal(was) {
		s.Phase, s.Reason, s.Message = was, a.old.Reason, a.old.Message
		return
	}
	stopped := v.halt != nil || v.pod.DeletionTimestamp != nil
	if stopped && !a.mayRun() {
		a.closing(s)
		closeStatuses(v.pod, s)
		return
	}
	s.Phase = count(v.pod, s).phase(v.pod)
	if terminal(s.Phase) && a.mayRun() {
		s.Phase = corev1.PodRunning
	}
	if terminal(s.Phase) && v.halt == nil && v.pod.DeletionTimestamp == nil {
		s.Phase = was // the worker has yet to wind it up
		if was == "" {
			s.Phase = corev1.PodPending
		}
	}
}

// closing sets the terminal phase of a pod that was stopped.
func (a account) closing(s *corev1.PodStatus) {
	v := a.view
	if v.halt != nil && v.halt.reason != "" && !v.halt.final {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, v.halt.reason, v.halt.message
		return
	}
	tally := count(v.pod, s)
	if v.pod.DeletionTimestamp != nil && v.halt == nil && len(v.seen.containers) == 0 && tally.stopped == 0 {
		s.Phase = corev1.PodFailed // deleted before anything ran
		if a.old.Phase == corev1.PodPending || a.old.Phase == "" {
			for i := range s.ContainerStatuses {
				s.ContainerStatuses[i].Ready = false
			}
		}
		return
	}
	if tally.stopped > 0 && tally.stopped == tally.succeeded && tally.unknown == 0 && tally.waiting == 0 && tally.initFailed == 0 {
		s.Phase = corev1.PodSucceeded
		return
	}
	s.Phase = corev1.PodFailed
}

// closeStatuses gives an end to each container of a closed pod that has none:
// nobody knows how it ended, so it failed. Containers whose turn had not come,
// as init containers had not ended, are left waiting.
func closeStatuses(pod *corev1.Pod, s *corev1.PodStatus) {
	inits := s.InitContainerStatuses
	for len(inits) > 1 && inits[len(inits)-1].State.Waiting != nil {
		inits = inits[:len(inits)-1]
	}
	if initialized(pod, s) {
		closeAll(s.ContainerStatuses)
	}
	closeAll(inits)
}

func closeAll(statuses []corev1.ContainerStatus) {
	for i := range statuses {
		if statuses[i].State.Terminated == nil {
			statuses[i].State = corev1.ContainerState{Terminated: lost("The container could not be located when the pod was terminated")}
		}
	}
}

// lost is the end of a container that nobody has seen end.
func lost(message string) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{Reason: "ContainerStatusUnknown", ExitCode: 137, Message: message}
}

// initialized tells whether the turn of the regular containers had come.
func initialized(pod *corev1.Pod, s *corev1.PodStatus) bool {
	inits := initUnits(pod)
	if len(inits) == 0 || slices.ContainsFunc(s.ContainerStatuses, func(cs corev1.ContainerStatus) bool {
		return cs.State.Waiting == nil || cs.LastTerminationState.Terminated != nil
	}) {
		return true
	}
	last := statusOf(s.InitContainerStatuses, inits[len(inits)-1].Name)
	if last == nil {
		return false
	}
	if inits[len(inits)-1].class == sidecar {
		return last.State.Running != nil && last.Started != nil && *last.Started
	}
	e := ended(last)
	return e != nil && e.ExitCode == 0
}

func terminal(p corev1.PodPhase) bool { return p == corev1.PodFailed || p == corev1.PodSucceeded }

// tally counts a pod's containers by how far they are.
type tally struct {
	running, waiting, unknown int
	stopped, succeeded        int
	final                     int // stopped and never to run again
	initPending, initFailed   int // initFailed: for good
	sidecarPending            int
	begun                     bool // a regular container has run in this life of the pod
}

func count(pod *corev1.Pod, s *corev1.PodStatus) tally {
	var t tally
	for i, u := range initUnits(pod) {
		if i >= len(s.InitContainerStatuses) {
			t.initPending++
			continue
		}
		if u.class == sidecar {
			t.addSidecar(&s.InitContainerStatuses[i])
		} else {
			t.addInit(pod, u, &s.InitContainerStatuses[i])
		}
	}
	for _, u := range units(pod) {
		if u.class == regular {
			t.addRegular(pod, u, statusOf(s.ContainerStatuses, u.Name))
		}
	}
	return t
}

func statusOf(all []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// ended gives how a container ended the last time, if it does not run now.
func ended(cs *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if cs.State.Terminated != nil {
		return cs.State.Terminated
	}
	if cs.State.Waiting != nil {
		return cs.LastTerminationState.Terminated
	}
	return nil
}

func (t *tally) addInit(pod *corev1.Pod, u unit, cs *corev1.ContainerStatus) {
	e := ended(cs)
	switch {
	case e == nil:
		t.initPending++
	case e.ExitCode != 0 && !u.restarts(pod, e.ExitCode):
		t.initFailed++
	case e.ExitCode != 0 && cs.State.Terminated != nil, cs.State.Waiting != nil:
		t.initPending++
	}
}

func (t *tally) addSidecar(cs *corev1.ContainerStatus) {
	switch {
	case cs.State.Running != nil:
		t.running++
		if cs.Started == nil || !*cs.Started {
			t.sidecarPending++
		}
	case ended(cs) == nil:
		t.sidecarPending++
		t.waiting++
	}
}

func (t *tally) addRegular(pod *corev1.Pod, u unit, cs *corev1.ContainerStatus) {
	if cs == nil {
		t.unknown++
		return
	}
	if cs.State.Running != nil {
		t.running++
		t.begun = true
		return
	}
	e := ended(cs)
	if e == nil {
		t.waiting++
		return
	}
	t.begun = true
	t.stopped++
	if e.ExitCode == 0 {
		t.succeeded++
	}
	if !u.restarts(pod, e.ExitCode) {
		t.final++
	}
}

func (t tally) phase(pod *corev1.Pod) corev1.PodPhase {
	switch {
	case t.initFailed > 0:
		return corev1.PodFailed
	case t.initPending > 0 && !t.begun, t.sidecarPending > 0 && !t.begun, t.waiting > 0:
		return corev1.PodPending
	case t.running > 0 && t.unknown == 0:
		return corev1.PodRunning
	case t.stopped > 0 && t.unknown == 0 && t.final < t.stopped:
		return corev1.PodRunning
	case t.stopped > 0 && t.unknown == 0 && t.succeeded == t.stopped:
		return corev1.PodSucceeded
	case t.stopped > 0 && t.unknown == 0:
		return corev1.PodFailed
	}
	return corev1.PodPending
}
