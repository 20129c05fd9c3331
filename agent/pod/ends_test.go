package pod

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An init container that succeeded is not waited for, whatever its policy.
func TestInitThatSucceededIsDone(t *testing.T) {
	pod := newPod("a")
	pod.Spec.InitContainers = []corev1.Container{newSpec("first")}
	now := time.Unix(1000, 0)
	for code, backs := range map[int32]bool{0: false, 1: true} {
		dead := &container{ID: "c1", Name: "first", State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: code, Created: now, Finished: now, Backoff: time.Minute}
		v := &view{now: now, pod: pod, seen: &observed{containers: []*container{dead}}}
		u, _ := findUnit(pod, "first")
		if c, _ := v.backingOff(u); (c != nil) != backs {
			t.Errorf("exit code %d: backing off %v, want %v", code, c != nil, backs)
		}
		a := account{view: v, old: &pod.Status, waiting: map[string]corev1.ContainerStateWaiting{"first": {Reason: "CrashLoopBackOff"}}}
		if cs := a.container(u); (cs.State.Waiting != nil) != backs || cs.Ready == backs {
			t.Errorf("exit code %d: %+v", code, cs)
		}
	}
}

// What was told is not taken back: the end of a container that may not run
// again, and of all once the pod has ended.
func TestHoldEnds(t *testing.T) {
	ended := func(code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: "told"}}
	}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
	for _, test := range []struct {
		policy corev1.RestartPolicy
		phase  corev1.PodPhase
		told   corev1.ContainerState
		now    corev1.ContainerState
		held   bool
	}{
		{corev1.RestartPolicyNever, corev1.PodRunning, ended(137), waiting, true},
		{corev1.RestartPolicyOnFailure, corev1.PodRunning, ended(0), waiting, true},
		{corev1.RestartPolicyOnFailure, corev1.PodRunning, ended(1), waiting, false},
		{corev1.RestartPolicyAlways, corev1.PodRunning, ended(0), waiting, false},
		{corev1.RestartPolicyAlways, corev1.PodFailed, ended(137), waiting, true},
		{corev1.RestartPolicyAlways, corev1.PodFailed, waiting, waiting, false},
	} {
		pod := newPod("a")
		pod.Spec.RestartPolicy = test.policy
		pod.Status = corev1.PodStatus{Phase: test.phase, ContainerStatuses: []corev1.ContainerStatus{{Name: "main", State: test.told}}}
		s := &corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "main", State: test.now}}}
		account{view: &view{pod: pod}, old: &corev1.PodStatus{}}.holdEnds(s)
		if held := s.ContainerStatuses[0].State.Terminated != nil; held != test.held {
			t.Errorf("%s, %s, told %v: held %v", test.policy, test.phase, test.told, held)
		}
	}
}

// A status that the API refuses is not what the pod's end waits for, and it is
// tried again ever more rarely.
func TestRefusedStatusHoldsNothingUp(t *testing.T) {
	now := time.Unix(1000, 0)
	w := &worker{m: &Manager{cfg: Config{Now: func() time.Time { return now }}}, pod: newPod("a"), log: slog.New(slog.DiscardHandler)}
	b := &w.written
	b.base, b.status = w.pod, corev1.PodStatus{Phase: corev1.PodFailed}
	refused := apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "a", nil)
	for i, settled := range []bool{false, true, true} {
		w.wrote(b.status, nil, refused)
		if b.settled(w.pod) != settled {
			t.Errorf("after %d refusals: settled %v", i+1, !settled)
		}
	}
	for range 20 {
		w.wrote(b.status, nil, refused)
	}
	if wait := b.retry.at.Sub(now); wait != 5*time.Minute {
		t.Errorf("tried again after %v", wait)
	}
	w.wrote(b.status, nil, errors.New("no connection"))
	if wait := b.retry.at.Sub(now); wait > 30*time.Second {
		t.Errorf("without a connection, tried again after %v", wait)
	}
	b.status.Phase = corev1.PodSucceeded
	if b.settled(w.pod) {
		t.Error("another status counts as refused")
	}
}

// stuckVolumes do not come back, as on a file system that does not answer.
type stuckVolumes struct {
	*memoryVolumes
	free chan struct{}
}

func (v stuckVolumes) Prepare(context.Context, *corev1.Pod) (map[string]Mount, error) {
	<-v.free
	return nil, nil
}

// A pod that hangs does not hold the agent up when it is told to end.
func TestStopWhileAPodHangs(t *testing.T) {
	dir, fs := t.TempDir(), machine(t)
	synctest.Test(t, func(t *testing.T) {
		cri := newFakeRuntime()
		w := newWorld(t, cri, cri, dir)
		w.cfg.CgroupFS = fs
		stuck := stuckVolumes{&memoryVolumes{}, make(chan struct{})}
		w.cfg.Volumes = stuck
		w.run()
		w.create(newPod("a"))
		synctest.Wait()
		begin := time.Now()
		w.stop()
		if took := time.Since(begin); took > endBound {
			t.Errorf("the end took %v", took)
		}
		close(stuck.free)
	})
}
