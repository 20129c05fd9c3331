package volume

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podresource "k8s.io/component-helpers/resource"

	"orch/agent/disk"
)

// Pods with a limit on what they keep on the node's disk are measured this
// often, and no more than one part in measureShare of the time: what they write
// costs the node no more than that. Pods without a limit are never looked at.
const (
	measureEvery = 10 * time.Second
	measureShare = 20
)

// limitedDirs gives a pod's volumes on disk that may only grow so far. The
// kernel itself bounds those in memory.
func limitedDirs(p *corev1.Pod) []*corev1.Volume {
	var found []*corev1.Volume
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if e := v.EmptyDir; e != nil && e.Medium == corev1.StorageMediumDefault && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			found = append(found, v)
		}
	}
	return found
}

// limitedContainers gives those that may only write so much; an init container
// that ends has gone before it is worth a look.
func limitedContainers(p *corev1.Pod) []corev1.Container {
	stays := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			stays = append(stays, c)
		}
	}
	return slices.DeleteFunc(stays, func(c corev1.Container) bool { return c.Resources.Limits.StorageEphemeral().IsZero() })
}

// limited tells whether anything of a pod is to be measured.
func limited(p *corev1.Pod) bool {
	_, total := podresource.PodLimits(p, podresource.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	return total || len(limitedDirs(p)) > 0
}

// scheduleMeasure asks for the next look; known.mu is held.
func (m *Manager) scheduleMeasure(known *podVolumes, uid types.UID, wait time.Duration) {
	if known.measure != nil {
		known.measure.Stop()
	}
	if m.cfg.Evict != nil {
		known.measure = time.AfterFunc(wait, func() { m.sizes.add(uid) })
	}
}

// measure evicts a pod that uses more of the node's disk than it may.
func (m *Manager) measure(ctx context.Context, uid types.UID) {
	known, p := m.lookup(uid)
	if known == nil || !limited(p) {
		return
	}
	begin := m.cfg.Now()
	message := m.exceeded(ctx, p)
	if ctx.Err() != nil {
		return
	}
	if message != "" {
		m.cfg.Evict(uid, "Evicted", message)
		return
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if !known.gone {
		m.scheduleMeasure(known, uid, max(measureEvery, measureShare*m.cfg.Now().Sub(begin)))
	}
}

// exceeded says, in upstream's words, which limit a pod is beyond: of a volume,
// of the pod, of a container, in this order; "" when it keeps them all.
func (m *Manager) exceeded(ctx context.Context, p *corev1.Pod) string {
	for _, v := range limitedDirs(p) {
		limit := v.EmptyDir.SizeLimit
		if used := bytesIn(ctx, filepath.Join(m.volumesDir(p.UID), v.Name)); used > limit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	limit, ok := podresource.PodLimits(p, podresource.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	if !ok || m.cfg.Written == nil {
		return ""
	}
	written := m.cfg.Written(ctx, p.UID)
	total := int64(0)
	for _, dir := range []string{m.volumesDir(p.UID), filepath.Join(m.podDir(p.UID), "containers"), filepath.Join(m.podDir(p.UID), "etc-hosts")} {
		total = plus(total, bytesIn(ctx, dir))
	}
	for _, used := range written {
		total = plus(total, used)
	}
	if total > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range limitedContainers(p) {
		if own := c.Resources.Limits.StorageEphemeral(); written[c.Name] > own.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, own.String())
		}
	}
	return ""
}

// plus adds what may be as large as it gets.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// bytesIn measures a directory. One that cannot be measured because of how deep
// it goes is beyond any limit, or files could be hidden from it.
func bytesIn(ctx context.Context, dir string) int64 {
	used, err := disk.Measure(ctx, dir)
	if errors.Is(err, disk.ErrTooDeep) {
		return math.MaxInt64
	}
	return used.Bytes
}
