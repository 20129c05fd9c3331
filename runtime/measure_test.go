package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMeasure prints what a pod costs; run it by hand: ORCH_MEASURE=1 go test -run TestMeasure -v
func TestMeasure(t *testing.T) {
	if os.Getenv("ORCH_MEASURE") == "" {
		t.Skip("prints figures; set ORCH_MEASURE=1")
	}
	needReal(t)
	dir := shortDir(t)
	start := time.Now()
	c := startChild(t, dir)
	t.Logf("ready after %s", time.Since(start))
	t.Logf("runtime idle: %s", smaps(c.cmd.Process.Pid))
	var pods []*pod
	for range 5 {
		start := time.Now()
		p := startPod(t, c.cri)
		t.Logf("pod after %s", time.Since(start))
		pods = append(pods, p)
	}
	<-time.After(32 * time.Second) // until the runtime has settled
	t.Logf("runtime with 5 pods: %s", smaps(c.cmd.Process.Pid))
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		cmdline, _ := os.ReadFile(p)
		if s := string(cmdline); strings.Contains(s, dir+"/agent/bin/containerd-shim") || strings.HasPrefix(s, "/pause") || strings.HasPrefix(s, "/hello") {
			var pid int
			fmt.Sscanf(p, "/proc/%d/cmdline", &pid)
			t.Logf("%s: %s", filepath.Base(strings.Split(s, "\x00")[0]), smaps(pid))
		}
	}
	for _, p := range pods {
		p.remove(t, c.cri)
	}
}

func smaps(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	var out []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch f[0] {
		case "Rss:", "Pss:", "Anonymous:", "Private_Dirty:":
			out = append(out, f[0]+f[1])
		}
	}
	return strings.Join(out, " ")
}
