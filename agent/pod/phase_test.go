package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What becomes of containers that have no end when their pod is closed.
func TestCloseStatuses(t *testing.T) {
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	exited := func(code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
	}
	tests := []struct {
		name         string
		inits, apps  []corev1.ContainerState
		sidecar      bool // the last init container is one
		wantI, wantA string
	}{
		{"nothing had begun", nil, []corev1.ContainerState{waiting}, false, "", "?"},
		{"one had ended", nil, []corev1.ContainerState{exited(0), waiting}, false, "", "0?"},
		{"init containers had not begun", []corev1.ContainerState{waiting, waiting}, []corev1.ContainerState{waiting}, false, "?w", "w"},
		{"the first had ended", []corev1.ContainerState{exited(0), waiting}, []corev1.ContainerState{waiting}, false, "0w", "w"},
		{"the second had failed", []corev1.ContainerState{exited(0), exited(1)}, []corev1.ContainerState{waiting}, false, "01", "w"},
		{"all had ended", []corev1.ContainerState{exited(0)}, []corev1.ContainerState{waiting}, false, "0", "?"},
		{"a sidecar had started", []corev1.ContainerState{running}, []corev1.ContainerState{waiting}, true, "?", "?"},
	}
	for _, test := range tests {
		pod, s := &corev1.Pod{}, &corev1.PodStatus{}
		always := corev1.ContainerRestartPolicyAlways
		for i, state := range test.inits {
			c := corev1.Container{Name: string(rune('i' + i))}
			if test.sidecar && i == len(test.inits)-1 {
				c.RestartPolicy = &always
			}
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
			s.InitContainerStatuses = append(s.InitContainerStatuses, corev1.ContainerStatus{Name: c.Name, State: state, Started: &test.sidecar})
		}
		for i, state := range test.apps {
			s.ContainerStatuses = append(s.ContainerStatuses, corev1.ContainerStatus{Name: string(rune('a' + i)), State: state})
		}
		closeStatuses(pod, s)
		if got := ends(s.InitContainerStatuses); got != test.wantI {
			t.Errorf("%s: init containers %q, want %q", test.name, got, test.wantI)
		}
		if got := ends(s.ContainerStatuses); got != test.wantA {
			t.Errorf("%s: containers %q, want %q", test.name, got, test.wantA)
		}
	}
}

// ends writes a letter for each status: w waiting, ? nobody knows how it ended,
// else the exit code.
func ends(all []corev1.ContainerStatus) (text string) {
	for _, cs := range all {
		switch e := cs.State.Terminated; {
		case e == nil:
			text += "w"
		case e.Reason == "ContainerStatusUnknown" && e.ExitCode == 137:
			text += "?"
		default:
			text += string(rune('0' + e.ExitCode))
		}
	}
	return text
}
