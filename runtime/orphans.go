package runtime

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// process is what is needed to know a shim.
type process struct {
	pid, parent int
	args        []string
}

// endOrphans ends the shims, and what they started, of sandboxes that are gone
// or never came to be: a process that was killed while it created a sandbox
// leaves some, and containerd does not look for them. It must run after
// containerd has recovered and before anybody creates a sandbox.
func (r *Runtime) endOrphans(ctx context.Context) error {
	wanted, err := r.liveSandboxes(ctx)
	if err != nil {
		return err
	}
	shims, err := r.shims()
	if err != nil {
		return err
	}
	for id, family := range shims {
		if !wanted[id] {
			r.endShim(id, family)
		}
	}
	_, err = r.Sweep(ctx, func(context.Context) error { return nil })
	return err
}

// Sweep ends the shims of sandboxes that the runtime does not know, removes what
// they kept on the disk, and tells how many shims there were. A sandbox has a
// shim before it is known: settled is called between the look at the one and at
// the other, and returns when what was being made is made. Of another runtime's
// shims we know nothing.
func (r *Runtime) Sweep(ctx context.Context, settled func(context.Context) error) (ended int, err error) {
	if !r.embed {
		return 0, nil
	}
	shims, err := r.shims()
	if err != nil {
		return 0, err
	}
	bundles := r.bundles()
	if len(shims)+len(bundles) == 0 {
		return 0, nil
	}
	if err := settled(ctx); err != nil {
		return 0, err
	}
	known, err := r.known(ctx)
	if err != nil {
		return 0, err
	}
	for id, family := range shims {
		if !known[id] {
			r.endShim(id, family)
			ended++
		}
	}
	for _, dir := range bundles {
		if id := filepath.Base(dir); !known[id] && shims[id] == nil {
			removeBundle(dir)
		}
	}
	return ended, nil
}

// known gives the ids of all sandboxes and containers that the runtime knows.
func (r *Runtime) known(ctx context.Context) (map[string]bool, error) {
	known := map[string]bool{}
	sandboxes, err := r.Runtime().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	for _, s := range sandboxes.Items {
		known[s.Id] = true
	}
	containers, err := r.Runtime().ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	for _, c := range containers.Containers {
		known[c.Id], known[c.PodSandboxId] = true, true
	}
	return known, nil
}

// bundles are the folders that shims keep for each sandbox and container.
func (r *Runtime) bundles() []string {
	var all []string
	for _, top := range []string{r.layout.state, r.layout.root} {
		dir := filepath.Join(top, "io.containerd.runtime.v2.task", "k8s.io")
		entries, _ := os.ReadDir(dir) // none yet
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all
}

// removeBundle removes a folder whose shim has ended. What cannot be unmounted is
// left alone, lest files of a container go with it.
func removeBundle(dir string) {
	rootfs := filepath.Join(dir, "rootfs")
	_ = unix.Unmount(rootfs, unix.MNT_DETACH) // as a rule it is not mounted
	if err := os.Remove(rootfs); err == nil || os.IsNotExist(err) {
		_ = os.RemoveAll(dir) // the next look tries again
	}
}

// EndShim ends the shim of a sandbox with all that runs in it, for when the
// runtime cannot: it then finds out by itself that they are gone.
func (r *Runtime) EndShim(sandbox string) error {
	if !r.embed {
		return nil
	}
	shims, err := r.shims()
	if err != nil {
		return err
	}
	if family, ok := shims[sandbox]; ok {
		r.endShim(sandbox, family)
	}
	return nil
}

// shims gives the processes of each sandbox's shim, the shim itself last.
func (r *Runtime) shims() (map[string][]int, error) {
	processes, err := listProcesses("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	shims := map[string][]int{}
	for _, p := range processes {
		if id, ok := shimOf(p.args, r.layout.socket); ok && sees(p.pid, r.cfg.DataDir) {
			shims[id] = append(descendants(processes, p.pid), p.pid)
		}
	}
	return shims, nil
}

func (r *Runtime) endShim(sandbox string, family []int) {
	r.log.Info("ending a shim that nobody stops", "sandbox", sandbox, "processes", family)
	for _, pid := range family {
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended already
	}
}

// sees tells whether a process finds at path the same folder as this one does. One
// in another mount namespace, of a container or a test, may have its own there, and
// what it serves is then somebody else's.
func sees(pid int, path string) bool {
	here, err := os.Stat(path)
	if err != nil {
		return false
	}
	there, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root", path))
	return err == nil && os.SameFile(here, there)
}

// liveSandboxes gives the sandboxes that run or have a container that does.
func (r *Runtime) liveSandboxes(ctx context.Context) (map[string]bool, error) {
	live := map[string]bool{}
	sandboxes, err := r.Runtime().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	for _, s := range sandboxes.Items {
		live[s.Id] = s.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	containers, err := r.Runtime().ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	for _, c := range containers.Containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING || c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			live[c.PodSandboxId] = true
		}
	}
	return live, nil
}

// shimOf gives the sandbox that a shim of the containerd at socket serves.
func shimOf(args []string, socket string) (id string, ok bool) {
	if len(args) == 0 || filepath.Base(args[0]) != "containerd-shim-runc-v2" || argument(args, "-address") != socket {
		return "", false
	}
	// "start" and "delete" are short errands, not the shim itself.
	if last := args[len(args)-1]; last == "start" || last == "delete" {
		return "", false
	}
	id = argument(args, "-id")
	return id, id != ""
}

func argument(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// listProcesses reads the process table; processes that end meanwhile are left out.
func listProcesses(proc string) ([]process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	var processes []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		command, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue
		}
		p := process{pid: pid, parent: parentOf(stat)}
		for _, arg := range bytes.Split(bytes.TrimRight(command, "\x00"), []byte{0}) {
			p.args = append(p.args, string(arg))
		}
		processes = append(processes, p)
	}
	return processes, nil
}

// parentOf reads the parent from /proc/<pid>/stat, whose second field, the
// name, may hold anything but is the last in parentheses.
func parentOf(stat []byte) int {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}

// descendants gives all that pid started, the innermost first.
func descendants(processes []process, pid int) []int {
	var all []int
	for _, p := range processes {
		if p.parent == pid {
			all = append(append(all, descendants(processes, p.pid)...), p.pid)
		}
	}
	return all
}
