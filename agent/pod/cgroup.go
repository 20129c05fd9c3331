package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"
)

// cgroups keeps one cgroup per pod below one per class of service:
// <root>[/burstable|/besteffort]/pod<uid>. Containers get theirs below that
// from the runtime.
type cgroups struct {
	fs, root string
	unified  bool
	// controllers are those that we set limits in (version 1: their mounts).
	controllers []string

	mu     sync.Mutex
	shares map[podUID]int64 // of burstable pods, for their class
}

func newCgroups(fs, root string) *cgroups {
	return &cgroups{fs: fs, root: root, shares: make(map[podUID]int64)}
}

// open finds out which version is mounted and makes the classes' cgroups.
func (c *cgroups) open() error {
	if _, err := os.Stat(filepath.Join(c.fs, "cgroup.controllers")); err == nil {
		c.unified = true
	} else {
		for _, name := range []string{"cpu", "memory", "pids", "hugetlb"} {
			if _, err := os.Stat(filepath.Join(c.fs, name, "cgroup.procs")); err == nil {
				c.controllers = append(c.controllers, name)
			}
		}
		if len(c.controllers) == 0 {
			return fmt.Errorf("no cgroups are mounted below %s: containers cannot run (`ip netns exec` hides them: use `nsenter --net=FILE`; otherwise `orch check` tells what to mount)", c.fs)
		}
	}
	for _, class := range []string{"", "burstable", "besteffort"} {
		if err := c.make(filepath.Join(c.root, class)); err != nil {
			return err
		}
	}
	return c.set(filepath.Join(c.root, "besteffort"), "cpu", sharesFile(c.unified), shareValue(c.unified, leastShares))
}

// parent is where a pod's containers go.
func (c *cgroups) parent(pod *corev1.Pod) string {
	class := ""
	switch qos.GetPodQOS(pod) {
	case corev1.PodQOSBurstable:
		class = "burstable"
	case corev1.PodQOSBestEffort:
		class = "besteffort"
	}
	return filepath.Join(c.root, class, "pod"+string(pod.UID))
}

// dirs are a cgroup's directories, one per hierarchy.
func (c *cgroups) dirs(path string) []string {
	if c.unified {
		return []string{filepath.Join(c.fs, path)}
	}
	var all []string
	for _, name := range c.controllers {
		all = append(all, filepath.Join(c.fs, name, path))
	}
	return all
}

// make makes a cgroup and, on version 2, hands the controllers down to it.
func (c *cgroups) make(path string) error {
	for _, dir := range c.dirs(path) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if !c.unified {
		return nil
	}
	for up := filepath.Dir(path); ; up = filepath.Dir(up) {
		for _, name := range []string{"cpu", "memory", "pids", "cpuset", "io", "hugetlb"} {
			// Controllers that the machine lacks or a parent withholds do without.
			_ = os.WriteFile(filepath.Join(c.fs, up, "cgroup.subtree_control"), []byte("+"+name), 0o644)
		}
		if up == "/" || up == "." {
			break
		}
	}
	return nil
}

// set writes one value. A controller that is missing is passed over.
func (c *cgroups) set(path, controller, file, value string) error {
	dir := filepath.Join(c.fs, path)
	if !c.unified {
		if !slices.Contains(c.controllers, controller) {
			return nil
		}
		dir = filepath.Join(c.fs, controller, path)
	}
	err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s of cgroup %s to %s: %w", file, path, value, err)
	}
	return nil
}

// ensure makes a pod's cgroup with the limits of its spec.
func (c *cgroups) ensure(pod *corev1.Pod) error {
	path := c.parent(pod)
	if err := c.make(path); err != nil {
		return err
	}
	limits := podLimits(pod)
	if err := c.apply(path, limits); err != nil {
		return err
	}
	return c.weigh(pod.UID, qos.GetPodQOS(pod), limits.shares)
}

// widen lifts a pod's limits, before its containers get new ones.
func (c *cgroups) widen(pod *corev1.Pod) error {
	l := podLimits(pod)
	l.quota, l.memory = 0, 0
	return c.apply(c.parent(pod), l)
}

// cgroupLimits of a pod; zero is no limit.
type cgroupLimits struct{ shares, quota, memory int64 }

// podLimits sums up a pod's containers. A limit counts only if all containers
// have one, or the pod itself.
func podLimits(pod *corev1.Pod) cgroupLimits {
	class := qos.GetPodQOS(pod)
	if class == corev1.PodQOSBestEffort {
		return cgroupLimits{shares: leastShares}
	}
	cpu, memory := true, true
	for _, u := range units(pod) {
		if u.class == ephemeral {
			continue
		}
		cpu = cpu && !u.Resources.Limits.Cpu().IsZero()
		memory = memory && !u.Resources.Limits.Memory().IsZero()
	}
	limits := podresource.PodLimits(pod, podresource.PodResourcesOptions{})
	if r := pod.Spec.Resources; r != nil {
		cpu = cpu || !r.Limits.Cpu().IsZero()
		memory = memory || !r.Limits.Memory().IsZero()
	}
	requests := podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	l := cgroupLimits{shares: cpuShares(requests.Cpu().MilliValue())}
	if cpu {
		l.quota = cpuQuota(limits.Cpu().MilliValue())
	}
	if memory {
		l.memory = limits.Memory().Value()
	}
	return l
}

func (c *cgroups) apply(path string, l cgroupLimits) error {
	quota, memory := "-1", "-1"
	if l.quota > 0 {
		quota = strconv.FormatInt(l.quota, 10)
	}
	if l.memory > 0 {
		memory = strconv.FormatInt(l.memory, 10)
	}
	if err := c.set(path, "cpu", sharesFile(c.unified), shareValue(c.unified, l.shares)); err != nil {
		return err
	}
	if !c.unified {
		return errors.Join(
			c.set(path, "cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)),
			c.set(path, "cpu", "cpu.cfs_quota_us", quota),
			c.set(path, "memory", "memory.limit_in_bytes", memory))
	}
	none := func(v string) string { return strings.Replace(v, "-1", "max", 1) }
	return errors.Join(
		c.set(path, "cpu", "cpu.max", none(quota)+" "+strconv.Itoa(cpuPeriod)),
		c.set(path, "memory", "memory.max", none(memory)))
}

// weigh gives the class of burstable pods the weight of all its pods.
func (c *cgroups) weigh(uid podUID, class corev1.PodQOSClass, shares int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if class == corev1.PodQOSBurstable {
		c.shares[uid] = shares
	} else if _, was := c.shares[uid]; was {
		delete(c.shares, uid)
	} else {
		return nil
	}
	sum := int64(leastShares)
	for _, s := range c.shares {
		sum += s
	}
	return c.set(filepath.Join(c.root, "burstable"), "cpu", sharesFile(c.unified), shareValue(c.unified, min(sum, mostShares)))
}

func sharesFile(unified bool) string {
	if unified {
		return "cpu.weight"
	}
	return "cpu.shares"
}

// shareValue maps shares [2, 262144] to weights [1, 10000] (KEP-2254).
func shareValue(unified bool, shares int64) string {
	if unified {
		shares = 1 + (shares-2)*9999/262142
	}
	return strconv.FormatInt(shares, 10)
}

// remove deletes a pod's cgroups, wherever the runtime made some.
func (c *cgroups) remove(uid podUID) error {
	roots := []string{c.fs}
	if !c.unified {
		mounts, err := os.ReadDir(c.fs)
		if err != nil {
			return err
		}
		roots = nil
		for _, m := range mounts {
			roots = append(roots, filepath.Join(c.fs, m.Name()))
		}
	}
	var errs []error
	for _, root := range roots {
		for _, class := range []string{"", "burstable", "besteffort"} {
			errs = append(errs, removeTree(filepath.Join(root, c.root, class, "pod"+string(uid))))
		}
	}
	errs = append(errs, c.weigh(uid, corev1.PodQOSBestEffort, 0))
	return errors.Join(errs...)
}

// removeTree removes a cgroup and those below it. Nothing else can be removed
// in there: the kernel's files go with their directory. What still runs in
// there belongs to no container that the runtime knows: it is killed, and the
// next attempt removes the cgroup.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		killIn(dir)
		return err
	}
	return nil
}

// killIn kills the processes of a cgroup.
func killIn(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for _, text := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(text); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended already
		}
	}
}
