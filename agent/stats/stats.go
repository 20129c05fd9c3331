// Package stats measures what the node and its pods use. Nothing is sampled in
// advance: a request reads control groups, /proc and directories at that moment.
package stats

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/disk"
	"orch/agent/node"
	"orch/agent/pod"
)

// Config of a Source.
type Config struct {
	NodeName string
	DataDir  string // whose file system is the node's
	Pods     func() []*pod.Snapshot
	Images   runtimeapi.ImageServiceClient
	// Volumes gives the directories of a pod's local volumes by name; nil: none.
	Volumes func(uid types.UID) map[string]string

	CgroupParent string // "": /kubepods
	CgroupFS     string // "": /sys/fs/cgroup
	ProcFS       string // "": /proc
	Now          func() time.Time
}

// Source answers with what is used now.
type Source struct {
	cfg     Config
	cgroups cgroups
	proc    proc

	mu   sync.Mutex
	last map[string]sample   // CPU use by cgroup at the last request; guarded by mu
	dirs map[string]measured // by path; guarded by mu
}

// New makes a source; it does no I/O.
func New(cfg Config) *Source {
	cfg.CgroupParent = cmp.Or(cfg.CgroupParent, "/kubepods")
	cfg.CgroupFS = cmp.Or(cfg.CgroupFS, "/sys/fs/cgroup")
	cfg.ProcFS = cmp.Or(cfg.ProcFS, "/proc")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Source{cfg: cfg, cgroups: cgroups{fs: cfg.CgroupFS}, proc: proc{cfg.ProcFS}, last: map[string]sample{}, dirs: map[string]measured{}}
}

// sample is a CPU counter at one moment.
type sample struct {
	at    time.Time
	nanos uint64
}

// Rates over less than shortest are noise, and over more than longest old news.
const (
	shortest = 500 * time.Millisecond
	longest  = 5 * time.Minute
)

// rate gives the cores used since the last request, in billionths. nil when there
// is nothing to compare with.
func (s *Source) rate(key string, now time.Time, nanos uint64) *uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[key]
	span := now.Sub(last.at)
	if !ok || span >= shortest {
		s.last[key] = sample{now, nanos}
	}
	if !ok || span < shortest || span > longest || nanos < last.nanos {
		return nil
	}
	return new(uint64(float64(nanos-last.nanos) / span.Seconds()))
}

// forget drops the samples of cgroups that nobody asked about for long.
func (s *Source) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, last := range s.last {
		if now.Sub(last.at) > longest {
			delete(s.last, key)
		}
	}
	for dir, last := range s.dirs {
		if now.Sub(last.at) > remembered {
			delete(s.dirs, dir)
		}
	}
}

// Detail says how much is measured.
type Detail bool

// Resources are CPU and memory; All adds disks and networks, which take longer.
const (
	Resources Detail = false
	All       Detail = true
)

// Summary measures the node and its running pods.
func (s *Source) Summary(ctx context.Context, detail Detail) *Summary {
	now := s.cfg.Now()
	defer s.forget(now)
	sum := &Summary{Node: s.node(ctx, now, detail), Pods: []PodStats{}}
	var layers map[string]string
	if detail == All {
		layers = s.proc.writableLayers()
	}
	for _, p := range s.cfg.Pods() {
		if p.SandboxID != "" {
			sum.Pods = append(sum.Pods, s.pod(ctx, now, p, layers, detail))
		}
	}
	slices.SortFunc(sum.Pods, func(a, b PodStats) int {
		return cmp.Or(cmp.Compare(a.PodRef.Namespace, b.PodRef.Namespace), cmp.Compare(a.PodRef.Name, b.PodRef.Name))
	})
	return sum
}

func (s *Source) node(ctx context.Context, now time.Time, detail Detail) NodeStats {
	at := metav1.NewTime(now)
	n := NodeStats{NodeName: s.cfg.NodeName, StartTime: metav1.NewTime(s.proc.bootTime())}
	if nanos, ok := s.proc.cpu(); ok {
		n.CPU = &CPUStats{Time: at, UsageCoreNanoSeconds: &nanos, UsageNanoCores: s.rate("", now, nanos)}
	}
	n.Memory, n.Swap = s.proc.memory(at)
	if detail == Resources {
		return n
	}
	n.Network = s.proc.network(at, "self")
	n.Rlimit = s.proc.processes(at)
	n.Fs = fileSystem(at, s.cfg.DataDir)
	if info, err := s.cfg.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); err == nil && len(info.ImageFilesystems) > 0 {
		of := info.ImageFilesystems[0]
		if fs := fileSystem(at, of.GetFsId().GetMountpoint()); fs != nil {
			fs.UsedBytes, fs.InodesUsed = value(of.UsedBytes), value(of.InodesUsed)
			n.Runtime = &RuntimeStats{ImageFs: fs, ContainerFs: fs}
		}
	}
	return n
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// cgroup is where the pod's processes are.
func (s *Source) cgroup(p *corev1.Pod) string {
	class := map[corev1.PodQOSClass]string{corev1.PodQOSBurstable: "burstable", corev1.PodQOSBestEffort: "besteffort"}
	return filepath.Join(s.cfg.CgroupParent, class[p.Status.QOSClass], "pod"+string(p.UID))
}

func (s *Source) pod(ctx context.Context, now time.Time, p *pod.Snapshot, layers map[string]string, detail Detail) PodStats {
	at, path := metav1.NewTime(now), s.cgroup(p.Pod)
	stats := PodStats{
		PodRef:     PodReference{Name: p.Pod.Name, Namespace: p.Pod.Namespace, UID: string(p.Pod.UID)},
		Containers: []ContainerStats{},
	}
	if p.Status.StartTime != nil {
		stats.StartTime = *p.Status.StartTime
	}
	stats.CPU, stats.Memory, stats.Swap = s.measure(now, path)
	if count, ok := s.cgroups.processes(path); ok {
		stats.Processes = &ProcessStats{Count: &count}
	}
	var total disk.Usage
	for _, c := range p.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		cs := ContainerStats{Name: c.Name, StartTime: started(p, c.Name)}
		cs.CPU, cs.Memory, cs.Swap = s.measure(now, filepath.Join(path, c.ID))
		if detail == All {
			root, logs := s.diskUsage(ctx, now, layers[c.ID]), s.diskUsage(ctx, now, logDir(c.LogPath))
			cs.Rootfs, cs.Logs = s.used(at, root), s.used(at, logs)
			total = total.Plus(root).Plus(logs)
		}
		stats.Containers = append(stats.Containers, cs)
	}
	if detail == Resources {
		return stats
	}
	if s.cfg.Volumes != nil {
		for name, dir := range s.cfg.Volumes(p.Pod.UID) {
			u := s.diskUsage(ctx, now, dir)
			stats.Volumes = append(stats.Volumes, VolumeStats{FsStats: *s.used(at, u), Name: name})
			total = total.Plus(u)
		}
		slices.SortFunc(stats.Volumes, func(a, b VolumeStats) int { return cmp.Compare(a.Name, b.Name) })
	}
	stats.EphemeralStorage = s.used(at, total)
	if pid := s.cgroups.firstProcess(filepath.Join(path, p.SandboxID)); pid != "" && !p.Pod.Spec.HostNetwork {
		stats.Network = s.proc.network(at, pid)
	}
	return stats
}

// logDir is where a container's logs lie, "" when it has none.
func logDir(log string) string {
	if log == "" {
		return ""
	}
	return filepath.Dir(log)
}

// started gives when a container started, from the pod's status.
func started(p *pod.Snapshot, name string) metav1.Time {
	for _, c := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if c.Name == name && c.State.Running != nil {
			return c.State.Running.StartedAt
		}
	}
	return metav1.Time{}
}

// measure reads one control group; what it does not tell stays nil.
func (s *Source) measure(now time.Time, path string) (*CPUStats, *MemoryStats, *SwapStats) {
	at := metav1.NewTime(now)
	var cpu *CPUStats
	if nanos, ok := s.cgroups.cpu(path); ok {
		cpu = &CPUStats{Time: at, UsageCoreNanoSeconds: &nanos, UsageNanoCores: s.rate(path, now, nanos)}
	}
	memory, swap := s.cgroups.memory(path)
	if memory != nil {
		memory.Time = at
	}
	if swap != nil {
		swap.Time = at
	}
	return cpu, memory, swap
}

// used is u on the node's file system.
func (s *Source) used(at metav1.Time, u disk.Usage) *FsStats {
	fs := fileSystem(at, s.cfg.DataDir)
	if fs == nil {
		fs = &FsStats{Time: at}
	}
	fs.UsedBytes, fs.InodesUsed = new(uint64(u.Bytes)), new(uint64(u.Inodes))
	return fs
}

// Usage is what the eviction of pods goes by.
func (s *Source) Usage(ctx context.Context) map[types.UID]node.Usage {
	all := map[types.UID]node.Usage{}
	for _, p := range s.Summary(ctx, All).Pods {
		u := node.Usage{Containers: map[string]node.Usage{}}
		if p.Memory != nil {
			u.MemoryBytes = number(p.Memory.WorkingSetBytes)
		}
		if p.EphemeralStorage != nil {
			u.DiskBytes = number(p.EphemeralStorage.UsedBytes)
		}
		if p.Processes != nil {
			u.Processes = number(p.Processes.Count)
		}
		for _, c := range p.Containers {
			var cu node.Usage
			if c.Memory != nil {
				cu.MemoryBytes = number(c.Memory.WorkingSetBytes)
			}
			if c.Rootfs != nil && c.Logs != nil {
				cu.DiskBytes = number(c.Rootfs.UsedBytes) + number(c.Logs.UsedBytes)
			}
			u.Containers[c.Name] = cu
		}
		all[types.UID(p.PodRef.UID)] = u
	}
	return all
}

func number(n *uint64) int64 {
	if n == nil {
		return 0
	}
	return int64(*n)
}
