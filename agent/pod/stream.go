package pod

import (
	"context"
	"fmt"
	"time"

	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type (
	kobject = kruntime.Object
	kwatch  = watch.Interface
)

// follow keeps the workers' view of the runtime current: it reads everything
// once, then takes the runtime's events. When the stream breaks it starts over.
// known is called after the first reading.
func (m *Manager) follow(ctx context.Context, known func()) error {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		begin := m.now()
		err := m.followOnce(ctx, known)
		if ctx.Err() != nil {
			return nil
		}
		m.log.Warn("runtime events ended", "err", err)
		if m.now().Sub(begin) > time.Minute {
			delay = 0
		}
		delay = min(max(100*time.Millisecond, 2*delay), 10*time.Second)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	return nil
}

func (m *Manager) followOnce(ctx context.Context, known func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The stream is opened first so that nothing between it and the list is lost.
	stream, err := m.cfg.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("open event stream: %w", err)
	}
	since := m.now()
	if err := m.readRuntime(ctx); err != nil {
		return err
	}
	known()
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		// A runtime may replay events of before; the list knew better.
		if nanoTime(e.GetCreatedAt()).Before(since) {
			continue
		}
		if r, ok := eventReport(e); ok {
			m.deliver(r)
		}
	}
}

// eventReport takes the state of the whole pod that comes with an event.
func eventReport(e *runtimeapi.ContainerEventResponse) (report, bool) {
	box := e.GetPodSandboxStatus()
	if box == nil || e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		return report{}, false // whatever was deleted, we deleted it
	}
	r := report{
		uid: types.UID(box.GetMetadata().GetUid()), namespace: box.GetMetadata().GetNamespace(),
		name: box.GetMetadata().GetName(), sandboxes: []*runtimeapi.PodSandboxStatus{box},
	}
	for _, c := range e.GetContainersStatuses() {
		r.containers = append(r.containers, containerReport{sandbox: box.GetId(), status: c})
	}
	return r, true
}

// readRuntime reports everything that the runtime holds, pod by pod.
func (m *Manager) readRuntime(ctx context.Context) error {
	since := m.now()
	reports, err := m.inventory(ctx, nil)
	if err != nil {
		return err
	}
	m.forgetUnknown(reports, since)
	for _, r := range reports {
		m.deliver(*r)
	}
	return nil
}

// readPod reports everything that the runtime holds of one pod.
func (m *Manager) readPod(ctx context.Context, uid types.UID) (report, error) {
	since := m.now()
	reports, err := m.inventory(ctx, map[string]string{labelUID: string(uid)})
	if err != nil {
		return report{}, err
	}
	if r := reports[uid]; r != nil {
		return *r, nil
	}
	return report{uid: uid, whole: true, since: since}, nil
}

// inventory reads what the runtime holds of the pods with these labels.
func (m *Manager) inventory(ctx context.Context, labels map[string]string) (map[types.UID]*report, error) {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	since := m.now()
	boxes, err := m.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := m.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	reports := make(map[types.UID]*report)
	of := func(labels map[string]string) *report {
		uid := types.UID(labels[labelUID])
		if uid == "" {
			return nil // not a pod's
		}
		if reports[uid] == nil {
			reports[uid] = &report{uid: uid, namespace: labels[labelNamespace], name: labels[labelPod], whole: true, since: since}
		}
		return reports[uid]
	}
	for _, b := range boxes.GetItems() {
		r := of(b.GetLabels())
		if r == nil {
			continue
		}
		got, err := m.cfg.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: b.GetId()})
		if notFoundIsFine(err) != nil {
			return nil, fmt.Errorf("read sandbox %s: %w", b.GetId(), err)
		}
		if err == nil {
			r.sandboxes = append(r.sandboxes, got.GetStatus())
		}
	}
	for _, c := range containers.GetContainers() {
		r := of(c.GetLabels())
		if r == nil {
			continue
		}
		got, err := m.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		if notFoundIsFine(err) != nil {
			return nil, fmt.Errorf("read container %s: %w", c.GetId(), err)
		}
		if err == nil {
			r.containers = append(r.containers, containerReport{sandbox: c.GetPodSandboxId(), status: got.GetStatus()})
		}
	}
	return reports, nil
}

// forgetUnknown tells workers that the runtime has nothing of their pods.
func (m *Manager) forgetUnknown(reports map[types.UID]*report, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, w := range m.workers {
		if reports[uid] == nil {
			w.mail.post(func() { w.take(report{whole: true, since: since}) })
		}
	}
}
