package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	helpers "k8s.io/component-helpers/resource"
)

// Images are removed from a file system fuller than highDisk until it is down
// to lowDisk.
const (
	highDisk = 0.85
	lowDisk  = 0.80
)

// Usage is what a pod uses of the resources that run out.
type Usage struct {
	MemoryBytes int64 // working set
	DiskBytes   int64 // writable layers, logs and emptyDirs
	Processes   int64
	// Containers is the same by container, for the message.
	Containers map[string]Usage
}

func (u Usage) of(name corev1.ResourceName) int64 {
	switch name {
	case corev1.ResourceMemory:
		return u.MemoryBytes
	case corev1.ResourceEphemeralStorage:
		return u.DiskBytes
	case resourcePIDs:
		return u.Processes
	}
	return 0
}

// relieve does something about what the last look found: unused images go
// first, then at most one pod. The next look follows soon.
func (m *Manager) relieve(ctx context.Context, now time.Time) {
	if m.cfg.Reclaim != nil {
		m.reclaim(ctx, now)
	}
	if m.cfg.Evictor == nil || m.cfg.Pods == nil || len(m.pressure.met) == 0 {
		return
	}
	t := m.pressure.met[0]
	m.event(corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", t.resource))
	if t.condition == corev1.NodeDiskPressure && m.cfg.Reclaim != nil {
		freed, err := m.cfg.Reclaim(ctx, now, t.quantity-t.available)
		if err != nil {
			m.log.Warn("cannot remove unused images", "err", err)
		}
		if freed >= t.quantity-t.available {
			return
		}
	}
	usage := map[types.UID]Usage{}
	if m.cfg.Usage != nil {
		usage = m.cfg.Usage(ctx)
	}
	for _, p := range rank(m.cfg.Pods(), t.resource, usage) {
		if critical(p) {
			continue
		}
		message := evictionMessage(p, t, usage[p.UID])
		m.log.Warn("evicting pod to relieve the node", "pod", p.Namespace+"/"+p.Name, "resource", t.resource, "usage", usage[p.UID].of(t.resource))
		grace := int64(1)
		m.cfg.Evictor.Evict(p.UID, "Evicted", message, corev1.PodReasonTerminationByKubelet, &grace)
		return
	}
}

// reclaim keeps the images' file system below its mark, long before there is
// any pressure.
func (m *Manager) reclaim(ctx context.Context, now time.Time) {
	s := m.pressure.signals
	if now.Before(m.images.nextReclaim) || s.imageBytes == 0 {
		return
	}
	m.images.nextReclaim = now.Add(reportInterval)
	want := int64(0) // nothing to remove, but what is in use is noted
	if used := s.imageBytes - s.imageFree; float64(used) > highDisk*float64(s.imageBytes) {
		want = used - int64(lowDisk*float64(s.imageBytes))
	}
	freed, err := m.cfg.Reclaim(ctx, now, want)
	if err != nil && ctx.Err() == nil {
		m.log.Warn("cannot remove unused images", "err", err)
		return
	}
	if freed < want {
		m.event(corev1.EventTypeWarning, "FreeDiskSpaceFailed", fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", want, freed))
	}
}

// rank gives pods in the order in which they are to be evicted for want of
// name: those above their request first, then by priority, then by how much
// they are above it.
func rank(pods []*corev1.Pod, name corev1.ResourceName, usage map[types.UID]Usage) []*corev1.Pod {
	excess := func(p *corev1.Pod) int64 { return usage[p.UID].of(name) - requested(p, name) }
	exceeds := func(p *corev1.Pod) int {
		if name == resourcePIDs || excess(p) <= 0 {
			return 1
		}
		return 0
	}
	order := slices.Clone(pods)
	slices.SortStableFunc(order, func(a, b *corev1.Pod) int {
		return cmp.Or(
			cmp.Compare(exceeds(a), exceeds(b)),
			cmp.Compare(priority(a), priority(b)),
			cmp.Compare(excess(b), excess(a)),
		)
	})
	return order
}

func requested(p *corev1.Pod, name corev1.ResourceName) int64 {
	amount := helpers.PodRequests(p, helpers.PodResourcesOptions{})[name]
	return amount.Value()
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return 0
}

// critical tells of pods that the node itself depends on; they are never
// evicted by it.
func critical(p *corev1.Pod) bool {
	source := p.Annotations["kubernetes.io/config.source"]
	const systemCritical = 2_000_000_000
	return source == "file" || source == "http" || p.Annotations["kubernetes.io/config.mirror"] != "" || priority(p) >= systemCritical
}

// evictionMessage says why in upstream's words, which tools read.
func evictionMessage(p *corev1.Pod, t threshold, usage Usage) string {
	bytes := func(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. ", t.resource)
	fmt.Fprintf(&b, "Threshold quantity: %s, available: %s. ", bytes(t.quantity), bytes(t.available>>10<<10))
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		request := c.Resources.Requests[t.resource]
		if used := usage.Containers[c.Name].of(t.resource); used > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, bytes(used), request.String(), t.resource)
		}
	}
	return b.String()
}
