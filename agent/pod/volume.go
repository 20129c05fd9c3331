package pod

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// volumes is how far the preparation of a pod's volumes has come. It goes on
// beside the pod's steps: the sandbox does not wait for it.
type volumes struct {
	ready  bool
	cancel context.CancelFunc // non-nil while it is under way
	done   chan struct{}
}

// Delays between attempts to prepare volumes.
const (
	volumeDelay    = 500 * time.Millisecond
	volumeDelayMax = 2 * time.Minute
	volumesKey     = "/volumes" // in worker.retries; not a container name
)

func (v *volumes) wanted(w *worker, now time.Time) bool {
	return !v.ready && v.cancel == nil && !w.down() && !now.Before(w.retries[volumesKey].at)
}

func (v *volumes) wake(w *worker) time.Time {
	if v.ready || v.cancel != nil || w.down() {
		return time.Time{}
	}
	return w.retries[volumesKey].at
}

// down tells that the pod is to stop or never to start.
func (w *worker) down() bool {
	return w.pod == nil || w.gone || w.halt != nil || w.pod.DeletionTimestamp != nil
}

func (w *worker) prepareVolumes(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.volumes.cancel, w.volumes.done = cancel, done
	pod := w.pod
	w.do(func() func() {
		defer close(done)
		mounts, err := w.m.cfg.Volumes.Prepare(ctx, pod)
		return func() {
			overtaken := ctx.Err() != nil
			cancel()
			w.volumes.cancel = nil
			switch {
			case err == nil:
				w.volumes.ready, w.mounts = true, mounts
				delete(w.retries, volumesKey)
			case !overtaken:
				w.fail(volumesKey, volumeDelay, volumeDelayMax)
				w.event(nil, corev1.EventTypeWarning, "FailedMount", fmt.Sprint(err))
			}
		}
	})
}

// stop ends the preparation. The channel is closed once nothing of it runs.
func (v *volumes) stop() <-chan struct{} {
	v.ready = false
	if v.cancel == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	v.cancel()
	return v.done
}
