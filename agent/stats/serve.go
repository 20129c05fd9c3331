package stats

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServeSummary answers /stats/summary.
func (s *Source) ServeSummary(w http.ResponseWriter, r *http.Request) {
	detail := All
	if r.URL.Query().Get("only_cpu_and_memory") == "true" {
		detail = Resources
	}
	w.Header().Set("Content-Type", "application/json")
	// A failed write means that the client has gone: nobody is left to tell.
	_ = json.NewEncoder(w).Encode(s.Summary(r.Context(), detail))
}

// ServeResource answers /metrics/resource, which metrics-server reads.
func (s *Source) ServeResource(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, resourceMetrics(s.Summary(r.Context(), Resources)))
}

// family is one metric in the Prometheus text format.
type family struct {
	name, kind, help string
	lines            strings.Builder
}

// add writes a value with its time; labels are pairs.
func (f *family) add(value float64, at metav1.Time, labels ...string) {
	f.lines.WriteString(f.name)
	for i := 0; i < len(labels); i += 2 {
		f.lines.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&f.lines, "%s=%q", labels[i], labels[i+1])
	}
	if len(labels) > 0 {
		f.lines.WriteByte('}')
	}
	fmt.Fprintf(&f.lines, " %v", value)
	if !at.IsZero() {
		fmt.Fprintf(&f.lines, " %d", at.UnixMilli())
	}
	f.lines.WriteByte('\n')
}

// cpu adds CPU time in seconds, if known.
func (f *family) cpu(c *CPUStats, labels ...string) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		f.add(float64(*c.UsageCoreNanoSeconds)/1e9, c.Time, labels...)
	}
}

// memory adds the working set, if known.
func (f *family) memory(m *MemoryStats, labels ...string) {
	if m != nil && m.WorkingSetBytes != nil {
		f.add(float64(*m.WorkingSetBytes), m.Time, labels...)
	}
}

// swap adds swap use, if known.
func (f *family) swap(s *SwapStats, labels ...string) {
	if s != nil && s.SwapUsageBytes != nil {
		f.add(float64(*s.SwapUsageBytes), s.Time, labels...)
	}
}

// resourceMetrics writes sum under the names that the kubelet uses.
func resourceMetrics(sum *Summary) string {
	const counter, gauge = "counter", "gauge"
	containerCPU := &family{name: "container_cpu_usage_seconds_total", kind: counter, help: "Cumulative cpu time consumed by the container in core-seconds"}
	containerMemory := &family{name: "container_memory_working_set_bytes", kind: gauge, help: "Current working set of the container in bytes"}
	containerStart := &family{name: "container_start_time_seconds", kind: gauge, help: "Start time of the container since unix epoch in seconds"}
	containerSwap := &family{name: "container_swap_usage_bytes", kind: gauge, help: "Current amount of the container swap usage in bytes"}
	nodeCPU := &family{name: "node_cpu_usage_seconds_total", kind: counter, help: "Cumulative cpu time consumed by the node in core-seconds"}
	nodeMemory := &family{name: "node_memory_working_set_bytes", kind: gauge, help: "Current working set of the node in bytes"}
	nodeSwap := &family{name: "node_swap_usage_bytes", kind: gauge, help: "Current swap usage of the node in bytes"}
	podCPU := &family{name: "pod_cpu_usage_seconds_total", kind: counter, help: "Cumulative cpu time consumed by the pod in core-seconds"}
	podMemory := &family{name: "pod_memory_working_set_bytes", kind: gauge, help: "Current working set of the pod in bytes"}
	podSwap := &family{name: "pod_swap_usage_bytes", kind: gauge, help: "Current amount of the pod swap usage in bytes"}
	failed := &family{name: "resource_scrape_error", kind: gauge, help: "1 if there was an error while getting container metrics, 0 otherwise"}

	nodeCPU.cpu(sum.Node.CPU)
	nodeMemory.memory(sum.Node.Memory)
	nodeSwap.swap(sum.Node.Swap)
	for _, p := range sum.Pods {
		labels := []string{"namespace", p.PodRef.Namespace, "pod", p.PodRef.Name}
		podCPU.cpu(p.CPU, labels...)
		podMemory.memory(p.Memory, labels...)
		podSwap.swap(p.Swap, labels...)
		for _, c := range p.Containers {
			labels := append([]string{"container", c.Name}, labels...)
			containerCPU.cpu(c.CPU, labels...)
			containerMemory.memory(c.Memory, labels...)
			containerSwap.swap(c.Swap, labels...)
			if !c.StartTime.IsZero() {
				containerStart.add(float64(c.StartTime.UnixNano())/1e9, metav1.Time{}, labels...)
			}
		}
	}
	failed.add(0, metav1.Time{})

	var out strings.Builder
	for _, f := range []*family{containerCPU, containerMemory, containerStart, containerSwap, nodeCPU, nodeMemory, nodeSwap, podCPU, podMemory, podSwap, failed} {
		if f.lines.Len() > 0 {
			fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n%s", f.name, f.help, f.name, f.kind, f.lines.String())
		}
	}
	return out.String()
}
