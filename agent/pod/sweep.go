package pod

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// sweepDelay is how long after the end of a pod, or after something that
	// failed, the node is looked over: what ends together is looked after at once.
	sweepDelay    = 10 * time.Second
	sweepDelayMax = 5 * time.Minute
	hopelessAfter = 4 * time.Second // back-off of a removal that has failed several times
)

// stale asks for a look at what the runtime holds that no pod wants.
func (m *Manager) stale() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// sweepRuntime looks for what belongs to nobody whenever it is asked to, and
// again, ever later, as long as it finds something. While nothing ends or fails,
// nothing is looked for.
func (m *Manager) sweepRuntime(ctx context.Context) error {
	delay := sweepDelay
	for {
		select {
		case <-m.dirty:
		case <-ctx.Done():
			return nil
		}
		if !pause(ctx, delay) {
			return nil
		}
		found, err := m.sweepOnce(ctx)
		if err == nil && found == 0 {
			delay = sweepDelay
			continue
		}
		if err != nil && ctx.Err() == nil {
			m.log.Warn("look for what no pod wants", "err", err)
		}
		delay = min(2*delay, sweepDelayMax)
		m.stale()
	}
}

// pause waits, and tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// sweepOnce ends processes that the runtime does not know, and has a worker
// take away what the runtime holds of pods that nobody knows.
func (m *Manager) sweepOnce(ctx context.Context) (found int, err error) {
	if m.cfg.Sweep != nil {
		if found, err = m.cfg.Sweep(ctx, m.calls.settled); err != nil {
			return found, err
		}
	}
	if !m.Listed() {
		return found, nil
	}
	strays, err := m.strays(ctx)
	if err != nil {
		return found, err
	}
	for _, uid := range strays {
		r, err := m.readPod(ctx, uid)
		if err != nil {
			return found, err
		}
		if len(r.sandboxes)+len(r.containers) > 0 {
			m.log.Info("the runtime holds something of a pod that is gone", "uid", string(uid))
			m.deliver(r)
			found++
		}
	}
	return found, nil
}

// strays are the pods that the runtime has something of, and that have no worker.
func (m *Manager) strays(ctx context.Context) ([]types.UID, error) {
	boxes, err := m.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := m.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all := make(map[types.UID]bool)
	for _, b := range boxes.GetItems() {
		all[types.UID(b.GetLabels()[labelUID])] = true
	}
	for _, c := range containers.GetContainers() {
		all[types.UID(c.GetLabels()[labelUID])] = true
	}
	delete(all, "") // not a pod's
	m.mu.Lock()
	defer m.mu.Unlock()
	var strays []types.UID
	for uid := range all {
		if m.workers[uid] == nil {
			strays = append(strays, uid)
		}
	}
	return strays, nil
}

// force ends the processes of sandboxes whose removal, held back under key, has
// failed several times: a shim that does not answer stays like that.
func (w *worker) force(key string) func() {
	if w.m.cfg.EndSandbox == nil || w.retries[key].delay < hopelessAfter {
		return func() {}
	}
	_, ids := w.seen.ids()
	return func() {
		for _, id := range ids {
			if err := w.m.cfg.EndSandbox(id); err != nil {
				w.log.Warn("end the processes of a sandbox", "sandbox", id, "err", err)
			}
		}
	}
}
