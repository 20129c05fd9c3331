package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// killUnder ends the processes that were started from dir (shims) and, with
// them, their children.
func killUnder(dir string) error {
	for range 100 {
		pids, err := processesUnder(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("processes of %s do not end", dir)
}

// processesUnder gives the shims of a data directory and all below them.
func processesUnder(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	shims, parents := map[int]bool{}, map[int]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		command, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if bytes.Contains(command, []byte(dir+"/")) && bytes.Contains(command, []byte("containerd-shim")) {
			shims[pid] = true
		}
		parents[pid] = parentOf(e.Name())
	}
	var pids []int
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if shims[p] {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

func parentOf(pid string) int {
	stat, _ := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if i := bytes.LastIndexByte(stat, ')'); i > 0 {
		if fields := strings.Fields(string(stat[i+1:])); len(fields) > 1 {
			ppid, _ := strconv.Atoi(fields[1])
			return ppid
		}
	}
	return 0
}

// mountsUnder gives the mount points below dir, the innermost first.
func mountsUnder(dir string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(mounts), "\n")
	var points []string
	for i := len(lines) - 1; i >= 0; i-- {
		if fields := strings.Fields(lines[i]); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	return points, nil
}

func unmountUnder(dir string) error {
	for range 5 {
		points, err := mountsUnder(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for _, p := range points {
			_ = syscall.Unmount(p, syscall.MNT_DETACH)
		}
	}
	return fmt.Errorf("mounts below %s do not go", dir)
}

// removeCgroups removes the pods' cgroups whose processes have ended, the
// innermost first; those of other nodes on this machine are busy or come back.
func removeCgroups(uids []string) {
	for _, uid := range uids {
		for _, pattern := range []string{"/sys/fs/cgroup/*/kubepods*/%s", "/sys/fs/cgroup/*/kubepods*/*/%s", "/sys/fs/cgroup/kubepods*/%s", "/sys/fs/cgroup/kubepods*/*/%s"} {
			found, _ := filepath.Glob(fmt.Sprintf(pattern, "pod"+uid))
			for _, dir := range found {
				inner, _ := filepath.Glob(dir + "/*/")
				for _, d := range append(inner, dir) {
					_ = syscall.Rmdir(strings.TrimSuffix(d, "/"))
				}
			}
		}
	}
}
