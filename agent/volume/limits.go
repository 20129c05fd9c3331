package volume

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// measureEvery is between two looks at the emptyDirs of a pod that has a limit
// on one. Pods without such a limit are never looked at.
const measureEvery = time.Minute

// limited gives a pod's volumes on disk that may only grow so far. The kernel
// itself bounds those in memory.
func limited(p *corev1.Pod) []*corev1.Volume {
	var found []*corev1.Volume
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if e := v.EmptyDir; e != nil && e.Medium == corev1.StorageMediumDefault && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			found = append(found, v)
		}
	}
	return found
}

// scheduleMeasure asks for the next look; known.mu is held.
func (m *Manager) scheduleMeasure(known *podVolumes, uid types.UID) {
	if known.measure != nil {
		known.measure.Stop()
	}
	if m.cfg.Evict != nil {
		known.measure = time.AfterFunc(measureEvery, func() { m.sizes.add(uid) })
	}
}

// measure evicts a pod that uses more of a volume than it may.
func (m *Manager) measure(ctx context.Context, uid types.UID) {
	known, p := m.lookup(uid)
	if known == nil {
		return
	}
	for _, v := range limited(p) {
		limit := v.EmptyDir.SizeLimit
		if used := bytesIn(ctx, filepath.Join(m.volumesDir(uid), v.Name)); used > limit.Value() {
			m.cfg.Evict(uid, "Evicted", fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String()))
			return
		}
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if !known.gone {
		m.scheduleMeasure(known, uid)
	}
}

// bytesIn adds up the blocks of all files, a file with several names once. It
// counts what it can see while containers go on writing.
func bytesIn(ctx context.Context, dir string) int64 {
	total := int64(0)
	seen := map[uint64]bool{} // inodes with several names
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil {
			return nil // gone meanwhile
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			seen[st.Ino] = true
		}
		const blockSize = 512 // whatever the file system's own is, stat(2)
		total += st.Blocks * blockSize
		return nil
	})
	return total
}
