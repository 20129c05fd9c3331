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
	processes, err := listProcesses("/proc")
	if err != nil {
		return fmt.Errorf("look for orphans: %w", err)
	}
	for _, p := range processes {
		id, ok := shimOf(p.args, r.layout.socket)
		if !ok || wanted[id] || !sees(p.pid, r.cfg.DataDir) {
			continue
		}
		family := append(descendants(processes, p.pid), p.pid)
		r.log.Info("ending what an interrupted start left", "sandbox", id, "processes", family)
		for _, pid := range family {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended already
		}
	}
	return nil
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
