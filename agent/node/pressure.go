package node

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The hard eviction thresholds, as upstream has them by default.
const (
	memoryFloor int64 = 100 << 20 // bytes available
	nodeFloor         = 0.10      // share of the node's file system
	imageFloor        = 0.15      // share of the file system with the images
	inodesFloor       = 0.05      // share of either's inodes
	pidsFloor         = 0.02      // share of the process ids; upstream has none

	// pressureStays is how long a condition outlives what caused it, lest
	// pods come and go with every breath.
	pressureStays = 5 * time.Minute
)

// signals are what the thresholds are held against. A zero size means unknown.
type signals struct {
	memoryAvailable          int64
	nodeBytes, nodeFree      int64
	nodeInodes, nodeInodesFr int64
	imageBytes, imageFree    int64
	pids, pidsFree           int64
	memoryKnown              bool
}

// threshold is one that was crossed.
type threshold struct {
	condition corev1.NodeConditionType
	resource  corev1.ResourceName
	quantity  int64 // the least there should be
	available int64
}

// Resources that exist for eviction only.
const (
	resourceInodes corev1.ResourceName = "inodes"
	resourcePIDs   corev1.ResourceName = "pids"
)

// crossed gives the thresholds that s is below, memory first.
func crossed(s signals) []threshold {
	var met []threshold
	check := func(known bool, condition corev1.NodeConditionType, name corev1.ResourceName, quantity, available int64) {
		if known && available < quantity {
			met = append(met, threshold{condition, name, quantity, available})
		}
	}
	share := func(total int64, floor float64) int64 { return int64(float64(total) * floor) }
	check(s.memoryKnown, corev1.NodeMemoryPressure, corev1.ResourceMemory, memoryFloor, s.memoryAvailable)
	check(s.nodeBytes > 0, corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage, share(s.nodeBytes, nodeFloor), s.nodeFree)
	check(s.imageBytes > 0, corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage, share(s.imageBytes, imageFloor), s.imageFree)
	check(s.nodeInodes > 0, corev1.NodeDiskPressure, resourceInodes, share(s.nodeInodes, inodesFloor), s.nodeInodesFr)
	check(s.pids > 0, corev1.NodePIDPressure, resourcePIDs, share(s.pids, pidsFloor), s.pidsFree)
	return met
}

// pressure remembers when each condition was last seen.
type pressure struct {
	last map[corev1.NodeConditionType]time.Time

	// Of the last look:
	signals signals
	met     []threshold
}

// note takes a look and gives the conditions that hold.
func (p *pressure) note(now time.Time, s signals) map[corev1.NodeConditionType]bool {
	if p.last == nil {
		p.last = map[corev1.NodeConditionType]time.Time{}
	}
	p.signals, p.met = s, crossed(s)
	for _, t := range p.met {
		p.last[t.condition] = now
	}
	holds := map[corev1.NodeConditionType]bool{}
	for condition, at := range p.last {
		if now.Sub(at) < pressureStays {
			holds[condition] = true
		}
	}
	return holds
}

// readSignals measures; what cannot be read stays unknown.
func (m *Manager) readSignals(ctx context.Context) signals {
	var s signals
	if meminfo, err := readMeminfo("/"); err == nil {
		s.memoryAvailable, s.memoryKnown = meminfo["MemAvailable"], true
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.cfg.DataDir, &fs); err == nil {
		s.nodeBytes, s.nodeFree = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
		s.nodeInodes, s.nodeInodesFr = int64(fs.Files), int64(fs.Ffree)
	}
	if dir := m.imageDir(ctx); dir != "" && unix.Statfs(dir, &fs) == nil {
		s.imageBytes, s.imageFree = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	}
	s.pids, s.pidsFree = readPIDs("/")
	return s
}

// imageDir is where the runtime keeps images; it is asked once.
func (m *Manager) imageDir(ctx context.Context) string {
	if m.images.dir == "" {
		info, err := m.cfg.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err == nil && len(info.ImageFilesystems) > 0 {
			m.images.dir = info.ImageFilesystems[0].GetFsId().GetMountpoint()
		}
	}
	return m.images.dir
}
