package stats

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/pod"
)

// ServeCAdvisor answers /metrics/cadvisor, on which dashboards and alerts for
// Kubernetes rest: the names and labels are cAdvisor's.
func (s *Source) ServeCAdvisor(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, s.containerMetrics())
}

// exposition is a text of metrics in the order in which they are first added.
type exposition struct {
	families map[string]*family
	order    []*family
}

func (e *exposition) add(name string, value float64, at metav1.Time, labels ...string) {
	f := e.families[name]
	if f == nil {
		f = &family{name: name, kind: "gauge", help: "As cAdvisor counts it"}
		if strings.HasSuffix(name, "_total") {
			f.kind = "counter"
		}
		e.families[name] = f
		e.order = append(e.order, f)
	}
	f.add(value, at, labels...)
}

func (e *exposition) String() string {
	var out strings.Builder
	for _, f := range e.order {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n%s", f.name, f.help, f.name, f.kind, f.lines.String())
	}
	return out.String()
}

// containerMetrics measures pods and their running containers. A pod's own lines
// have no container; those of its network bear its sandbox, as upstream's do.
func (s *Source) containerMetrics() string {
	at := metav1.NewTime(s.cfg.Now())
	e := &exposition{families: map[string]*family{}}
	s.machine(e, at)
	for _, p := range s.cfg.Pods() {
		if p.SandboxID == "" {
			continue
		}
		path := s.cgroup(p.Pod)
		s.cgroupMetrics(e, at, path, identity(p, path, nil)...)
		for i := range p.Containers {
			c := &p.Containers[i]
			if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				continue
			}
			labels := identity(p, filepath.Join(path, c.ID), c)
			s.cgroupMetrics(e, at, filepath.Join(path, c.ID), labels...)
			if start := started(p, c.Name); !start.IsZero() {
				e.add("container_start_time_seconds", float64(start.Unix()), at, labels...)
			}
		}
		if pid := s.cgroups.firstProcess(filepath.Join(path, p.SandboxID)); pid != "" && !p.Pod.Spec.HostNetwork {
			sandbox := &pod.Container{ID: p.SandboxID}
			s.networkMetrics(e, at, pid, identity(p, filepath.Join(path, p.SandboxID), sandbox))
		}
	}
	return e.String()
}

// identity gives the labels of a container (nil: of the whole pod), by name.
func identity(p *pod.Snapshot, path string, c *pod.Container) []string {
	container, image, name := "", "", ""
	if c != nil {
		container, image, name = c.Name, imageOf(p, c.Name), c.ID
	}
	return []string{"container", container, "id", path, "image", image, "name", name, "namespace", p.Pod.Namespace, "pod", p.Pod.Name}
}

func imageOf(p *pod.Snapshot, container string) string {
	for _, all := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == container {
				return all[i].Image
			}
		}
	}
	return ""
}

// machine adds the node's size and the figures of the root control group.
func (s *Source) machine(e *exposition, at metav1.Time) {
	root := []string{"container", "", "id", "/", "image", "", "name", "", "namespace", "", "pod", ""}
	if cores := s.proc.processors(); cores > 0 {
		e.add("machine_cpu_cores", float64(cores), metav1.Time{})
	}
	if total := readTable(filepath.Join(s.proc.dir, "meminfo"))["MemTotal"]; total > 0 {
		e.add("machine_memory_bytes", float64(total<<10), metav1.Time{})
	}
	if nanos, ok := s.proc.cpu(); ok {
		e.add("container_cpu_usage_seconds_total", float64(nanos)/1e9, at, append(root, "cpu", "total")...)
	}
	if m, _ := s.proc.memory(at); m != nil {
		e.add("container_memory_usage_bytes", float64(*m.UsageBytes), at, root...)
		e.add("container_memory_working_set_bytes", float64(*m.WorkingSetBytes), at, root...)
		e.add("container_memory_rss", float64(*m.RSSBytes), at, root...)
	}
}

func (s *Source) cgroupMetrics(e *exposition, at metav1.Time, path string, labels ...string) {
	add := func(name string, value float64) { e.add(name, value, at, labels...) }
	if nanos, ok := s.cgroups.cpu(path); ok {
		e.add("container_cpu_usage_seconds_total", float64(nanos)/1e9, at, append(labels[:len(labels):len(labels)], "cpu", "total")...)
	}
	if t, ok := s.cgroups.throttling(path); ok {
		add("container_cpu_cfs_periods_total", float64(t.periods))
		add("container_cpu_cfs_throttled_periods_total", float64(t.throttled))
		add("container_cpu_cfs_throttled_seconds_total", float64(t.nanos)/1e9)
		add("container_spec_cpu_period", float64(t.period))
		add("container_spec_cpu_quota", float64(t.quota))
	}
	m, swap := s.cgroups.memory(path)
	if m == nil {
		return
	}
	cache, mapped, kills := s.cgroups.memoryDetails(path)
	add("container_memory_usage_bytes", float64(*m.UsageBytes))
	add("container_memory_working_set_bytes", float64(*m.WorkingSetBytes))
	add("container_memory_rss", float64(*m.RSSBytes))
	add("container_memory_cache", float64(cache))
	add("container_memory_mapped_file", float64(mapped))
	if swap != nil {
		add("container_memory_swap", float64(*swap.SwapUsageBytes))
	}
	limit := uint64(0) // none
	if m.AvailableBytes != nil {
		limit = *m.AvailableBytes + *m.WorkingSetBytes
	}
	add("container_spec_memory_limit_bytes", float64(limit))
	add("container_oom_events_total", float64(kills))
	if n, ok := s.cgroups.processes(path); ok {
		add("container_threads", float64(n))
	}
}

// networkCounters are fields of /proc/net/dev after the interface's name.
var networkCounters = []struct {
	field int
	name  string
}{
	{0, "container_network_receive_bytes_total"}, {1, "container_network_receive_packets_total"},
	{2, "container_network_receive_errors_total"}, {3, "container_network_receive_packets_dropped_total"},
	{8, "container_network_transmit_bytes_total"}, {9, "container_network_transmit_packets_total"},
	{10, "container_network_transmit_errors_total"}, {11, "container_network_transmit_packets_dropped_total"},
}

func (s *Source) networkMetrics(e *exposition, at metav1.Time, pid string, labels []string) {
	s.proc.interfaces(pid, func(name string, fields []string) {
		for _, c := range networkCounters {
			if v, err := strconv.ParseUint(fields[c.field], 10, 64); err == nil {
				e.add(c.name, float64(v), at, append(labels[:len(labels):len(labels)], "interface", name)...)
			}
		}
	})
}
