package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/server/registry"
)

// runtimeClass adds what a pod's runtime class costs and where it runs.
type runtimeClass struct{}

func (runtimeClass) Admit(_ context.Context, a *registry.Attempt) error {
	pod := newPod(a)
	if pod == nil {
		return nil
	}
	var class *nodev1.RuntimeClass
	if name := pod.Spec.RuntimeClassName; name != nil {
		var err error
		class, err = registry.Of[*nodev1.RuntimeClass](a.Registry).Get("", *name)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("pod rejected: RuntimeClass %q not found", *name)
		}
		if err != nil {
			return err
		}
	}
	if err := setOverhead(pod, class); err != nil {
		return err
	}
	if class == nil || class.Scheduling == nil {
		return nil
	}
	return setScheduling(pod, class.Scheduling)
}

func setOverhead(pod *corev1.Pod, class *nodev1.RuntimeClass) error {
	if class == nil || class.Overhead == nil {
		if pod.Spec.Overhead != nil {
			return errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
		}
		return nil
	}
	if len(pod.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
		return errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
	}
	pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	return nil
}

func setScheduling(pod *corev1.Pod, scheduling *nodev1.Scheduling) error {
	for key, value := range scheduling.NodeSelector {
		if own, ok := pod.Spec.NodeSelector[key]; ok && own != value {
			return fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, own)
		}
	}
	if len(scheduling.NodeSelector) > 0 {
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = make(map[string]string, len(scheduling.NodeSelector))
		}
		maps.Copy(pod.Spec.NodeSelector, scheduling.NodeSelector)
	}
	pod.Spec.Tolerations = mergeTolerations(pod.Spec.Tolerations, scheduling.Tolerations)
	return nil
}
