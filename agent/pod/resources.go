package pod

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubectl/pkg/util/qos"
)

const (
	cpuPeriod   = 100_000 // µs
	leastQuota  = 1_000   // µs; the kernel takes no less
	leastShares = 2
	mostShares  = 262_144
	leastLimit  = 10 // milli-CPU below which leastQuota rules
)

// cpuShares converts milli-CPU to cgroup v1 shares, which CRI speaks on both
// versions.
func cpuShares(milli int64) int64 {
	return min(max(milli*1024/1000, leastShares), mostShares)
}

// cpuQuota converts a limit in milli-CPU to µs per period; 0 is no limit.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*cpuPeriod/1000, leastQuota)
}

// linuxResources are the basic ones, nil when nothing is asked for.
func linuxResources(requests, limits corev1.ResourceList) *runtimeapi.LinuxContainerResources {
	if len(requests) == 0 && len(limits) == 0 {
		return nil
	}
	cpu := requests.Cpu().MilliValue()
	if _, ok := requests[corev1.ResourceCPU]; !ok {
		cpu = limits.Cpu().MilliValue()
	}
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: cpuPeriod, CpuQuota: cpuQuota(limits.Cpu().MilliValue()), CpuShares: cpuShares(cpu),
		MemoryLimitInBytes: limits.Memory().Value(),
	}
}

// podResources sums up what the pod's sandbox may be told in advance.
func podResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	opts := podresource.PodResourcesOptions{ExcludeOverhead: true}
	return linuxResources(podresource.PodRequests(pod, opts), podresource.PodLimits(pod, opts))
}

// containerResources are a container's, its pod's limits standing in where it
// has none of its own (KEP-2837).
func (m *Manager) containerResources(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	limits := corev1.ResourceList{}
	if pod.Spec.Resources != nil {
		for name, q := range pod.Spec.Resources.Limits {
			limits[name] = q
		}
	}
	for name, q := range c.Resources.Limits {
		if !q.IsZero() {
			limits[name] = q
		}
	}
	requests := c.Resources.Requests
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	r := linuxResources(requests, limits)
	if r == nil {
		r = &runtimeapi.LinuxContainerResources{CpuPeriod: cpuPeriod, CpuShares: leastShares}
	}
	r.OomScoreAdj = oomScoreAdj(pod, c, m.cfg.MemoryBytes)
	r.HugepageLimits = m.hugepages(limits)
	if m.cgroups.unified {
		// A container out of memory ends as a whole, as with kubelet unless
		// singleProcessOOMKill says otherwise. Version 1 of cgroups cannot.
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

// hugepages limits every page size of the machine, to nothing when the
// container does not name it.
func (m *Manager) hugepages(limits corev1.ResourceList) []*runtimeapi.HugepageLimit {
	var all []*runtimeapi.HugepageLimit
	for _, size := range m.pageSizes {
		l := &runtimeapi.HugepageLimit{PageSize: size.name}
		for name, q := range limits {
			bytes, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
			if !ok {
				continue
			}
			if want, err := resource.ParseQuantity(bytes); err == nil && want.Value() == size.bytes {
				l.Limit = uint64(q.Value())
			}
		}
		all = append(all, l)
	}
	return all
}

// pageSize is one size of huge pages, with its name in cgroups.
type pageSize struct {
	bytes int64
	name  string
}

// machinePageSizes reads which huge pages there are.
func machinePageSizes(dir string) []pageSize {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without huge pages
	}
	var all []pageSize
	for _, e := range entries {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		size := pageSize{kb << 10, fmt.Sprintf("%dKB", kb)}
		switch {
		case kb >= 1<<20:
			size.name = fmt.Sprintf("%dGB", kb>>20)
		case kb >= 1<<10:
			size.name = fmt.Sprintf("%dMB", kb>>10)
		}
		all = append(all, size)
	}
	return all
}

// oomScoreAdj ranks containers for the kernel's out-of-memory killer, as
// kubelet does: guaranteed pods last, best-effort ones first, the rest by how
// much memory they asked for.
func oomScoreAdj(pod *corev1.Pod, c *corev1.Container, machine int64) int64 {
	const guaranteed, bestEffort = -997, 1000
	if pod.Spec.PriorityClassName == "system-node-critical" {
		return guaranteed
	}
	switch qos.GetPodQOS(pod) {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return bestEffort
	}
	if machine == 0 {
		return bestEffort - 1
	}
	adj := 1000 - 1000*c.Resources.Requests.Memory().Value()/machine
	return min(max(adj, 1000+guaranteed), bestEffort-1)
}
