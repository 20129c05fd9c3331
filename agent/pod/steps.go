package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// execute gives the effects of a step. What it returns runs beside the worker
// and must not touch the worker's state; the function it gives in turn is run
// by the worker.
func (w *worker) execute(ctx context.Context, s step) func() func() {
	switch s.action {
	case look:
		return w.readRuntime(ctx)
	case createSandbox:
		return w.createSandbox(ctx, s)
	case start:
		return w.startContainer(ctx, s.unit)
	case kill:
		return w.killContainers(ctx, s.kills)
	case stopSandbox:
		return w.stopSandboxes(ctx, s.ids)
	case discard:
		return w.discardContainers(ctx, s.ids)
	case resize:
		return w.resizeContainers(ctx)
	case release:
		return w.releasePod(ctx)
	case confirm:
		return w.confirmDeleted(ctx)
	case erase:
		return w.eraseTraces(ctx)
	}
	panic("pod: no such step: " + string(s.action))
}

// readRuntime finds out what calls have made that failed or were not answered.
func (w *worker) readRuntime(ctx context.Context) func() func() {
	return func() func() {
		r, err := w.m.readPod(ctx, w.uid)
		return func() {
			if err != nil {
				w.log.Warn("read what the runtime holds of the pod", "err", err)
				w.fail(look.key(), time.Second, time.Minute)
				return
			}
			delete(w.retries, look.key())
			w.take(r)
		}
	}
}

func (w *worker) createSandbox(ctx context.Context, s step) func() func() {
	pod, first := w.pod, len(w.seen.sandboxes) == 0
	if s.changed {
		w.event(nil, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	return func() func() {
		made, handler, err := w.m.createSandbox(ctx, pod, s.attempt)
		return func() {
			if err == nil {
				w.handlers = handler
				w.seen.addSandbox(made)
				if made.Ready {
					delete(w.retries, "")
				} else { // it died at once
					w.fail("", 250*time.Millisecond, 30*time.Second)
				}
				return
			}
			w.unsure = true
			if errors.Is(context.Cause(ctx), errOvertaken) {
				return
			}
			w.fail("", 250*time.Millisecond, 30*time.Second)
			if first {
				w.log.Warn("create sandbox", "pod", pod.Name, "err", err)
			}
			w.event(nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", fmt.Sprintf("Failed to create pod sandbox: %v", err))
		}
	}
}

// createSandbox makes the pod's cgroup and then its sandbox with its network.
func (m *Manager) createSandbox(ctx context.Context, pod *corev1.Pod, attempt uint32) (*sandbox, string, error) {
	handler, err := m.runtimeHandler(ctx, pod)
	if err != nil {
		return nil, "", err
	}
	if err := m.makeDirs(pod); err != nil {
		return nil, "", err
	}
	if err := m.cgroups.ensure(pod); err != nil {
		return nil, "", fmt.Errorf("make pod cgroup: %w", err)
	}
	config, err := m.sandboxConfig(pod, attempt)
	if err != nil {
		return nil, "", err
	}
	if err := m.starts.Acquire(ctx, 1); err != nil {
		return nil, "", err
	}
	defer m.starts.Release(1)
	made, err := m.cfg.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, "", err
	}
	state, err := m.cfg.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: made.GetPodSandboxId()})
	if err != nil {
		return nil, "", fmt.Errorf("read sandbox status: %w", err)
	}
	return newSandbox(state.GetStatus()), handler, nil
}

// runtimeHandler resolves the pod's runtime class.
func (m *Manager) runtimeHandler(ctx context.Context, pod *corev1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	class, err := m.cfg.Client.NodeV1().RuntimeClasses().Get(ctx, *name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("failed to get sandbox runtime: unable to get RuntimeClass %q: %w", *name, err)
	}
	return class.Handler, nil
}

func (w *worker) stopSandboxes(ctx context.Context, ids []string) func() func() {
	force := w.force(stopSandbox.key())
	return func() func() {
		force()
		group, ctx := errgroup.WithContext(ctx)
		for _, id := range ids {
			group.Go(func() error {
				_, err := w.m.cfg.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
				return notFoundIsFine(err)
			})
		}
		err := group.Wait()
		return func() {
			if err != nil {
				w.fail(stopSandbox.key(), time.Second, time.Minute)
				w.event(nil, corev1.EventTypeWarning, "FailedKillPod", fmt.Sprintf("error killing pod: %v", err))
				return
			}
			delete(w.retries, stopSandbox.key())
			for _, s := range w.seen.sandboxes {
				for _, id := range ids {
					if s.ID == id {
						s.Ready, s.Stopped = false, true
					}
				}
			}
		}
	}
}

func (w *worker) discardContainers(ctx context.Context, ids []string) func() func() {
	files := w.attemptFiles(ids)
	return func() func() {
		for _, id := range ids {
			if err := w.m.removeContainer(ctx, id); err != nil {
				return func() { w.fail(discard.key(), time.Second, time.Minute) }
			}
		}
		if err := files(); err != nil {
			w.log.Warn("remove logs of earlier containers", "err", err)
		}
		return func() {
			delete(w.retries, discard.key())
			w.seen.forget(ids...)
		}
	}
}

// attemptFiles gives what removes the logs and termination messages of
// containers, and of earlier attempts at them, once they are gone.
func (w *worker) attemptFiles(ids []string) func() error {
	last, kept := map[string]int32{}, map[string]map[int32]bool{}
	for _, c := range w.seen.containers {
		if slices.Contains(ids, c.ID) {
			last[c.Name] = max(last[c.Name], c.Attempt)
			continue
		}
		if kept[c.Name] == nil {
			kept[c.Name] = map[int32]bool{}
		}
		kept[c.Name][c.Attempt] = true
	}
	pod := w.pod
	return func() error {
		var errs []error
		for name, attempt := range last {
			dirs := []string{filepath.Join(w.m.podDir(w.uid), "containers", name)}
			if pod != nil {
				dirs = append(dirs, filepath.Join(w.m.podLogDir(pod), name))
			}
			errs = append(errs, removeAttempts(dirs, attempt, kept[name]))
		}
		errs = append(errs, w.m.dropLinks())
		return errors.Join(errs...)
	}
}

func (m *Manager) removeContainer(ctx context.Context, id string) error {
	_, err := m.cfg.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return notFoundIsFine(err)
}

// releasePod gives back what the pod holds on the node beside its containers.
func (w *worker) releasePod(ctx context.Context) func() func() {
	pending := w.volumes.stop()
	return func() func() {
		<-pending
		err := w.m.cfg.Volumes.Remove(ctx, w.uid)
		if err == nil {
			err = w.m.cgroups.remove(w.uid)
		}
		return func() {
			if err != nil {
				w.log.Warn("release pod", "err", err)
				w.fail(release.key(), time.Second, time.Minute)
				return
			}
			delete(w.retries, release.key())
			w.released = true
		}
	}
}

// confirmDeleted ends the graceful deletion that the API object is in.
func (w *worker) confirmDeleted(ctx context.Context) func() func() {
	pod := w.pod
	return func() func() {
		opts := metav1.NewDeleteOptions(0)
		opts.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
		err := w.m.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *opts)
		return func() {
			switch {
			case err == nil:
				// The object may stay for its finalizers; its deletion reaches us as news.
				w.fail(confirm.key(), time.Minute, time.Hour)
			case apierrors.IsNotFound(err), apierrors.IsConflict(err):
				w.gone = true
			default:
				w.fail(confirm.key(), 200*time.Millisecond, time.Minute)
			}
		}
	}
}

// eraseTraces removes what is left of a pod whose API object is gone: dead
// containers, sandboxes, logs and files.
func (w *worker) eraseTraces(ctx context.Context) func() func() {
	containers, sandboxes := w.seen.ids()
	force := w.force(erase.key())
	return func() func() {
		force()
		left, err := w.m.erase(ctx, w.uid, containers, sandboxes)
		return func() {
			if err != nil {
				w.log.Warn("remove pod", "err", err)
				w.fail(erase.key(), time.Second, time.Minute)
				return
			}
			w.take(left)
			w.erased = len(left.sandboxes) == 0 && len(left.containers) == 0
			if !w.erased { // made by a call that was given up long ago
				w.released = false
				w.fail(erase.key(), time.Second, time.Minute)
			}
		}
	}
}

// erase removes all that a pod has in the runtime and on the disk. It reports
// what the runtime still holds of it then.
func (m *Manager) erase(ctx context.Context, uid types.UID, containers, sandboxes []string) (report, error) {
	for _, id := range containers {
		if err := m.removeContainer(ctx, id); err != nil {
			return report{}, fmt.Errorf("remove container: %w", err)
		}
	}
	for _, id := range sandboxes {
		_, err := m.cfg.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		if notFoundIsFine(err) != nil {
			return report{}, fmt.Errorf("remove sandbox: %w", err)
		}
	}
	left, err := m.readPod(ctx, uid)
	if err != nil || len(left.sandboxes) > 0 || len(left.containers) > 0 {
		return left, err
	}
	m.users.free(uid)
	return left, m.removeDirs(uid)
}

// message is what an error of the runtime says, without gRPC's frame.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// notFoundIsFine drops the error that says there is nothing to take away.
func notFoundIsFine(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}
