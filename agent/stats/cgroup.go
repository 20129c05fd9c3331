package stats

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroups reads control groups of version 1 (a hierarchy per controller) or 2
// (one for all), whichever is mounted at fs.
type cgroups struct{ fs string }

func (c cgroups) unified() bool {
	_, err := os.Stat(filepath.Join(c.fs, "cgroup.controllers"))
	return err == nil
}

// file names a file of a control group; controller matters to version 1 only.
func (c cgroups) file(controller, path, name string) string {
	if c.unified() {
		return filepath.Join(c.fs, path, name)
	}
	return filepath.Join(c.fs, controller, path, name)
}

// cpu gives the CPU time used so far in nanoseconds.
func (c cgroups) cpu(path string) (uint64, bool) {
	if c.unified() {
		usec, ok := readTable(c.file("", path, "cpu.stat"))["usage_usec"]
		return usec * 1000, ok
	}
	return readNumber(c.file("cpuacct", path, "cpuacct.usage"))
}

// memory gives nil where there is no such group.
func (c cgroups) memory(path string) (*MemoryStats, *SwapStats) {
	names := struct{ usage, limit, swap, rss, inactive, faults, major string }{
		"memory.usage_in_bytes", "memory.limit_in_bytes", "", "total_rss", "total_inactive_file", "total_pgfault", "total_pgmajfault",
	}
	if c.unified() {
		names.usage, names.limit, names.swap = "memory.current", "memory.max", "memory.swap.current"
		names.rss, names.inactive, names.faults, names.major = "anon", "inactive_file", "pgfault", "pgmajfault"
	}
	usage, ok := readNumber(c.file("memory", path, names.usage))
	if !ok {
		return nil, nil
	}
	table := readTable(c.file("memory", path, "memory.stat"))
	rss, faults, major := table[names.rss], table[names.faults], table[names.major]
	working := usage - min(usage, table[names.inactive])
	m := &MemoryStats{UsageBytes: &usage, WorkingSetBytes: &working, RSSBytes: &rss, PageFaults: &faults, MajorPageFaults: &major}
	// Without a limit the file says "max" or a number near 2^63.
	if limit, ok := readNumber(c.file("memory", path, names.limit)); ok && limit < 1<<60 {
		m.AvailableBytes = new(limit - min(limit, working))
	}
	if names.swap == "" {
		return m, nil
	}
	if used, ok := readNumber(c.file("memory", path, names.swap)); ok {
		return m, &SwapStats{SwapUsageBytes: &used}
	}
	return m, nil
}

// throttle tells how often a group was held back by its CPU quota. Times are in
// nanoseconds, but for quota and period, which are in microseconds.
type throttle struct{ periods, throttled, nanos, quota, period uint64 }

// throttling is false for a group without a quota.
func (c cgroups) throttling(path string) (t throttle, ok bool) {
	stat := readTable(c.file("cpu", path, "cpu.stat"))
	t.periods, t.throttled, t.nanos = stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"]
	if !c.unified() {
		if t.quota, ok = readNumber(c.file("cpu", path, "cpu.cfs_quota_us")); !ok { // -1: none
			return t, false
		}
		t.period, ok = readNumber(c.file("cpu", path, "cpu.cfs_period_us"))
		return t, ok
	}
	t.nanos = stat["throttled_usec"] * 1000
	data, err := os.ReadFile(c.file("", path, "cpu.max")) // "max 100000": none
	if err != nil {
		return t, false
	}
	_, err = fmt.Sscan(string(data), &t.quota, &t.period)
	return t, err == nil
}

// memoryDetails gives bytes of files that are cached and mapped, and how many
// processes were killed for want of memory.
func (c cgroups) memoryDetails(path string) (cache, mapped, kills uint64) {
	stat := readTable(c.file("memory", path, "memory.stat"))
	if c.unified() {
		return stat["file"], stat["file_mapped"], readTable(c.file("", path, "memory.events"))["oom_kill"]
	}
	return stat["total_cache"], stat["total_mapped_file"], readTable(c.file("memory", path, "memory.oom_control"))["oom_kill"]
}

// processes counts processes and threads.
func (c cgroups) processes(path string) (uint64, bool) {
	return readNumber(c.file("pids", path, "pids.current"))
}

// firstProcess gives the id of a process in the group, "" when it is empty.
func (c cgroups) firstProcess(path string) string {
	data, err := os.ReadFile(c.file("pids", path, "cgroup.procs"))
	if err != nil {
		return ""
	}
	pid, _, _ := strings.Cut(string(data), "\n")
	return pid
}

func readNumber(path string) (uint64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil
}

// readTable reads lines of a name and a number, with or without a colon.
func readTable(path string) map[string]uint64 {
	table := map[string]uint64{}
	file, err := os.Open(path)
	if err != nil {
		return table
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
			table[strings.TrimSuffix(fields[0], ":")] = n
		}
	}
	return table
}
