package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// writer brings a pod's status to the API: one write at a time, the latest
// status wins, nothing is written that the API has already.
type writer struct {
	status corev1.PodStatus // as last computed
	base   *corev1.Pod      // as the API has it
	busy   bool
	retry  retry // after a failure
	// refused is a status that the API does not take. It is tried again ever
	// more rarely, and after the second time the pod's end does not wait for it.
	refused  *corev1.PodStatus
	refusals int
	held     time.Time // news of a start under way waits until then
}

// seen takes note of what the API has. Objects may come late from the watch
// while our own write has been answered already.
func (b *writer) seen(pod *corev1.Pod) {
	if b.base == nil || !older(pod, b.base) {
		if b.refusals > 0 && pod.ResourceVersion != b.base.ResourceVersion {
			b.retry = retry{} // it may be taken now
		}
		b.base = pod
	}
}

// older compares resource versions of one object. They are numbers in every
// Kubernetes API (KEP-5504); otherwise the later arrival counts as the newer.
func older(a, b *corev1.Pod) bool {
	x, y := a.ResourceVersion, b.ResourceVersion
	return len(x) < len(y) || len(x) == len(y) && x < y
}

// settled tells that the API has the status that was computed last, or does
// not take it.
func (b *writer) settled(pod *corev1.Pod) bool {
	return pod != nil && b.base != nil && !b.busy && (same(&b.base.Status, &b.status) || b.refusals > 1 && same(b.refused, &b.status))
}

func (b *writer) wake() time.Time {
	if b.busy {
		return time.Time{}
	}
	return earliest(b.retry.at, b.held)
}

// same compares statuses as they look on the wire, where times have seconds.
func same(a, b *corev1.PodStatus) bool {
	if apiequality.Semantic.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// making tells that a step may bring something to run, or has left in doubt
// whether it did.
func (w *worker) making() bool {
	return w.unsure || w.flight != nil && (w.flight.step.action == start || w.flight.step.action == createSandbox)
}

// compute brings the pod's status up to date, here.
func (w *worker) compute(v *view) {
	if w.pod == nil || w.gone {
		return
	}
	w.written.seen(w.pod)
	old := &w.written.status
	if old.Phase == "" {
		old = &w.pod.Status
	}
	w.written.status = podStatus(account{
		view: v, old: old, hostIPs: w.m.cfg.HostIPs(), waiting: w.waiting, starting: w.starting, making: w.making(),
		ready: w.readiness(), resize: w.resizeConditions(), allocated: w.allocated, scheme: "containerd",
	})
	w.show()
}

// holdBack is how long news waits that only says that a start is under way:
// as a rule the start is done by then, and one write tells it all.
const holdBack = 250 * time.Millisecond

// write begins to bring the status to the API, unless it is there already.
func (w *worker) write(ctx context.Context, now time.Time) {
	b := &w.written
	if !now.Before(b.retry.at) {
		b.retry.at = time.Time{} // it has come; a time gone by would wake the worker for ever
	}
	if w.pod == nil || w.gone || b.busy || now.Before(b.retry.at) || same(&b.base.Status, &b.status) {
		b.held = time.Time{}
		return
	}
	if f := w.flight; f != nil && (f.step.action == start || f.step.action == createSandbox) && b.minor() && now.Before(f.since.Add(holdBack)) {
		b.held = f.since.Add(holdBack)
		return
	}
	b.busy, b.held = true, time.Time{}
	base, next := b.base, b.status
	w.do(func() func() {
		got, err := w.m.patchStatus(ctx, base, next)
		return func() { w.wrote(next, got, err) }
	})
}

// minor tells that no container's status nor the phase has changed.
func (b *writer) minor() bool {
	have, want := &b.base.Status, &b.status
	return have.Phase == want.Phase && len(have.ContainerStatuses) > 0 &&
		apiequality.Semantic.DeepEqual(have.ContainerStatuses, want.ContainerStatuses) &&
		apiequality.Semantic.DeepEqual(have.InitContainerStatuses, want.InitContainerStatuses)
}

func (w *worker) wrote(status corev1.PodStatus, got *corev1.Pod, err error) {
	b := &w.written
	b.busy = false
	if err == nil {
		b.seen(got)
		b.retry, b.refused, b.refusals = retry{}, nil, 0
		return
	}
	most := 30 * time.Second
	if willNotTake(err) {
		if b.refused == nil || !same(b.refused, &status) {
			b.refused, b.refusals = &status, 0
		}
		b.refusals++
		most = 5 * time.Minute
	}
	b.retry.delay = min(max(100*time.Millisecond, 2*b.retry.delay), most)
	b.retry.at = w.m.now().Add(b.retry.delay)
	if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // gone, or another pod of that name: the watch will say so
		w.log.Warn("write pod status", "pod", w.pod.Name, "err", err, "refusals", b.refusals)
	}
}

// willNotTake tells that the same request is answered the same way again, as a
// rule: rights of a new node may take a moment, a mistake of ours stays one.
func willNotTake(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) || apierrors.IsNotFound(err) ||
		apierrors.IsConflict(err) || apierrors.IsRequestEntityTooLargeError(err) || apierrors.IsMethodNotSupported(err)
}

// patchStatus writes the difference between two statuses.
func (m *Manager) patchStatus(ctx context.Context, base *corev1.Pod, next corev1.PodStatus) (*corev1.Pod, error) {
	type meta struct {
		UID types.UID `json:"uid"`
	}
	type half struct {
		Metadata meta             `json:"metadata"`
		Status   corev1.PodStatus `json:"status"`
	}
	before, err := json.Marshal(half{Status: base.Status})
	if err != nil {
		return nil, err
	}
	// The UID is in the patch always: it must not hit a later pod of that name.
	after, err := json.Marshal(half{Metadata: meta{base.UID}, Status: next})
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, &corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("make status patch: %w", err)
	}
	return m.cfg.Client.CoreV1().Pods(base.Namespace).Patch(ctx, base.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
}
