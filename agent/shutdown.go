package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"orch/agent/shutdown"
)

// ErrShutdown ends Run when somebody asked for the node's shutdown and its pods
// have ended.
var ErrShutdown = shutdown.ErrDone

// leastCritical is the priority from which on a pod is critical for the node or
// the cluster.
const leastCritical = 2_000_000_000

func (a *assembly) shutdownConfig() shutdown.Config {
	return shutdown.Config{
		Period: a.cfg.ShutdownPeriod, CriticalPeriod: a.cfg.ShutdownCriticalPeriod, Asked: a.cfg.Shutdown, Logger: a.cfg.Logger,
		Pods: a.shutdownPods, Known: a.pods.Listed, Settle: a.settlePods,
		Stop: func(uid types.UID, grace time.Duration) {
			seconds := int64(grace.Seconds())
			a.pods.Evict(uid, shutdown.Reason, shutdown.Message, corev1.PodReasonTerminationByKubelet, &seconds)
		},
		Changed: func(underWay bool) {
			message := "Shutdown manager detected shutdown cancellation"
			if underWay {
				message = "Shutdown manager detected shutdown event"
			}
			a.node.Event(corev1.EventTypeNormal, "NodeShutdown", message)
			a.node.Wake()
		},
	}
}

func (a *assembly) shutdownPods() []shutdown.Pod {
	var all []shutdown.Pod
	for _, s := range a.pods.Pods() {
		if s.Pod == nil {
			continue
		}
		p := shutdown.Pod{UID: s.Pod.UID, Grace: corev1.DefaultTerminationGracePeriodSeconds * time.Second}
		if grace := s.Pod.Spec.TerminationGracePeriodSeconds; grace != nil {
			p.Grace = time.Duration(*grace) * time.Second
		}
		p.Critical = s.Pod.Spec.Priority != nil && *s.Pod.Spec.Priority >= leastCritical
		// The sandbox is stopped after the last container.
		p.Running = !ended(s.Status.Phase) || s.SandboxID != ""
		all = append(all, p)
	}
	return all
}

func ended(phase corev1.PodPhase) bool {
	return phase == corev1.PodFailed || phase == corev1.PodSucceeded
}

// settleTime is how long the API may take to learn how the pods ended.
const settleTime = 3 * time.Second

// settlePods waits until no pod of this node runs in the eyes of the API. It may
// be gone before this node.
func (a *assembly) settlePods(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	here := metav1.ListOptions{FieldSelector: fields.AndSelectors(
		fields.OneTermEqualSelector("spec.nodeName", a.cfg.NodeName),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
	).String()}
	for {
		list, err := a.api.CoreV1().Pods(metav1.NamespaceAll).List(ctx, here)
		if err == nil && len(list.Items) == 0 {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// refuse tells why no pod may start here, if so.
func (a *assembly) refuse() (reason, message string) {
	if a.shutdown != nil && a.shutdown.UnderWay() {
		return shutdown.RejectionReason, shutdown.RejectionMessage
	}
	return "", ""
}
