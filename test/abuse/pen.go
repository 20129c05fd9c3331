package abuse

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// pen is a cgroup of half a core, in which attackers run: what an attack costs
// them bounds it, and so it does here.
type pen struct{ dir string }

const cpuRoot = "/sys/fs/cgroup"

func newPen() (*pen, error) {
	dir, settings := filepath.Join(cpuRoot, "cpu"), map[string]string{"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
	if _, err := os.Stat(filepath.Join(cpuRoot, "cgroup.controllers")); err == nil {
		dir, settings = cpuRoot, map[string]string{"cpu.max": "50000 100000"}
	}
	p := &pen{filepath.Join(dir, "orch-abuse-"+strconv.Itoa(os.Getpid()))}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a cgroup for attackers: %w", err)
	}
	for name, value := range settings {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("bound the attackers to half a core: %w", err)
		}
	}
	return p, nil
}

// command runs a program in the pen and in the network namespace.
func (p *pen) command(namespace, program string, args ...string) *exec.Cmd {
	const enter = `echo $$ >"$0/cgroup.procs" && exec "$@"`
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + namespace, "sh", "-c", enter, p.dir, program}, args...)...)
}

func (p *pen) close() error { return os.Remove(p.dir) }
