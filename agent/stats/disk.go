package stats

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/disk"
)

// fileSystem describes the file system that holds dir, nil when there is none.
func fileSystem(at metav1.Time, dir string) *FsStats {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return nil
	}
	size := uint64(f.Bsize)
	capacity, available, used := f.Blocks*size, f.Bavail*size, (f.Blocks-f.Bfree)*size
	inodes, free, taken := f.Files, f.Ffree, f.Files-f.Ffree
	return &FsStats{
		Time: at, CapacityBytes: &capacity, AvailableBytes: &available, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &free, InodesUsed: &taken,
	}
}

// remembered is how long a measurement of a directory is good for: requests for
// statistics come from outside, and a directory may hold millions of files.
const remembered = 15 * time.Second

// measured is what was found in a directory.
type measured struct {
	at    time.Time
	usage disk.Usage
}

// diskUsage measures a directory, unless that was done a moment ago. One that
// is nested too deep counts as far as it was followed.
func (s *Source) diskUsage(ctx context.Context, now time.Time, dir string) disk.Usage {
	s.mu.Lock()
	last, ok := s.dirs[dir]
	s.mu.Unlock()
	if dir == "" || ok && now.Sub(last.at) < remembered {
		return last.usage
	}
	usage, err := disk.Measure(ctx, dir)
	if err == nil || errors.Is(err, disk.ErrTooDeep) {
		s.mu.Lock()
		s.dirs[dir] = measured{now, usage}
		s.mu.Unlock()
	}
	return usage
}

// Written gives what the containers of a pod have written, in bytes by name:
// their writable layers while they run, and their logs.
func (s *Source) Written(ctx context.Context, uid types.UID) map[string]int64 {
	written := map[string]int64{}
	add := func(name, dir string) {
		usage, err := disk.Measure(ctx, dir)
		if errors.Is(err, disk.ErrTooDeep) { // files could be hidden from any limit
			usage.Bytes = math.MaxInt64 - written[name]
		}
		written[name] += min(usage.Bytes, math.MaxInt64-written[name])
	}
	var layers map[string]string
	for _, p := range s.cfg.Pods() {
		if p.Pod == nil || p.Pod.UID != uid {
			continue
		}
		for _, c := range p.Containers {
			if _, again := written[c.Name]; !again && c.LogPath != "" {
				add(c.Name, filepath.Dir(c.LogPath))
			}
			if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				continue
			}
			if layers == nil {
				layers = s.proc.writableLayers()
			}
			if dir := layers[c.ID]; dir != "" {
				add(c.Name, dir)
			}
		}
	}
	return written
}
