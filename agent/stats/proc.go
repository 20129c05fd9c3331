package stats

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// proc reads the file system at dir as proc(5) describes it.
type proc struct{ dir string }

// tick is the unit of CPU times in /proc/stat: Linux fixes it at 1/100 s.
const tick = uint64(10 * time.Millisecond)

// cpu gives the time all processors were busy, in nanoseconds.
func (p proc) cpu() (uint64, bool) {
	data, err := os.ReadFile(filepath.Join(p.dir, "stat"))
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal guest guest_nice
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, false
	}
	var busy uint64
	for i, f := range fields[1:9] { // guest time is in user time already
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, false
		}
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy * tick, true
}

func (p proc) bootTime() time.Time {
	return time.Unix(int64(readTable(filepath.Join(p.dir, "stat"))["btime"]), 0)
}

func (p proc) memory(at metav1.Time) (*MemoryStats, *SwapStats) {
	info := readTable(filepath.Join(p.dir, "meminfo")) // in KiB
	if info["MemTotal"] == 0 {
		return nil, nil
	}
	usage := (info["MemTotal"] - info["MemFree"]) << 10
	working := usage - min(usage, info["Inactive(file)"]<<10)
	available, rss := info["MemAvailable"]<<10, info["AnonPages"]<<10
	events := readTable(filepath.Join(p.dir, "vmstat"))
	faults, major := events["pgfault"], events["pgmajfault"]
	free, swapped := info["SwapFree"]<<10, (info["SwapTotal"]-info["SwapFree"])<<10
	return &MemoryStats{
			Time: at, AvailableBytes: &available, UsageBytes: &usage, WorkingSetBytes: &working,
			RSSBytes: &rss, PageFaults: &faults, MajorPageFaults: &major,
		},
		&SwapStats{Time: at, SwapAvailableBytes: &free, SwapUsageBytes: &swapped}
}

func (p proc) processes(at metav1.Time) *RlimitStats {
	limit, ok := readNumber(filepath.Join(p.dir, "sys/kernel/pid_max"))
	load, err := os.ReadFile(filepath.Join(p.dir, "loadavg"))
	fields := strings.Fields(string(load))
	if !ok || err != nil || len(fields) < 4 {
		return nil
	}
	_, count, _ := strings.Cut(fields[3], "/")
	running, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return nil
	}
	return &RlimitStats{Time: at, MaxPID: new(int64(limit)), Count: &running}
}

// processors counts those that are on.
func (p proc) processors() (n int) {
	for name := range readTable(filepath.Join(p.dir, "stat")) {
		if id, ok := strings.CutPrefix(name, "cpu"); ok && id != "" {
			n++
		}
	}
	return n
}

// interfaces calls each with the counters of /proc/net/dev, 16 for each interface
// in the network namespace of a process but loopback: received bytes, packets,
// errors, drops, fifo, frame, compressed, multicast; sent bytes, packets, errors …
func (p proc) interfaces(pid string, each func(name string, fields []string)) {
	file, err := os.Open(filepath.Join(p.dir, pid, "net/dev"))
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		if fields := strings.Fields(rest); ok && len(fields) >= 16 && strings.TrimSpace(name) != "lo" {
			each(strings.TrimSpace(name), fields)
		}
	}
}

// network reads the interfaces in the network namespace of a process. The
// first counts as the default one.
func (p proc) network(at metav1.Time, pid string) *NetworkStats {
	n := &NetworkStats{Time: at}
	p.interfaces(pid, func(name string, fields []string) {
		one := InterfaceStats{Name: name}
		for i, field := range map[int]**uint64{0: &one.RxBytes, 2: &one.RxErrors, 8: &one.TxBytes, 10: &one.TxErrors} {
			if v, err := strconv.ParseUint(fields[i], 10, 64); err == nil {
				*field = &v
			}
		}
		n.Interfaces = append(n.Interfaces, one)
	})
	if len(n.Interfaces) == 0 {
		return nil
	}
	n.InterfaceStats = n.Interfaces[0]
	return n
}

// writableLayers gives the directory that takes what a container writes, by
// container ID: the upper directory of the overlay mounted on its rootfs.
func (p proc) writableLayers() map[string]string {
	layers := map[string]string{}
	file, err := os.Open(filepath.Join(p.dir, "self/mounts"))
	if err != nil {
		return layers
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // many layers make long lines
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[2] != "overlay" || filepath.Base(fields[1]) != "rootfs" {
			continue
		}
		for option := range strings.SplitSeq(fields[3], ",") {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				layers[filepath.Base(filepath.Dir(fields[1]))] = dir
			}
		}
	}
	return layers
}
