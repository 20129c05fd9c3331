package stats

import (
	"context"
	"encoding/json"
	"flag"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/pod"
)

var update = flag.Bool("update", false, "write the golden files anew")

// write fills root with files.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		file := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	podDir       = "kubepods/burstable/podu1"
	containerDir = podDir + "/c1"
)

func v1Files() map[string]string {
	stat := "cache 1\ntotal_cache 500000\ntotal_mapped_file 20000\ntotal_rss 3000000\ntotal_inactive_file 1000000\ntotal_pgfault 7\ntotal_pgmajfault 1\n"
	return map[string]string{
		"cpuacct/" + podDir + "/cpuacct.usage":              "3000000000\n",
		"cpuacct/" + containerDir + "/cpuacct.usage":        "2500000000\n",
		"memory/" + podDir + "/memory.usage_in_bytes":       "5000000\n",
		"memory/" + podDir + "/memory.limit_in_bytes":       "9223372036854771712\n",
		"memory/" + podDir + "/memory.stat":                 stat,
		"memory/" + containerDir + "/memory.usage_in_bytes": "4000000\n",
		"memory/" + containerDir + "/memory.limit_in_bytes": "10000000\n",
		"memory/" + containerDir + "/memory.stat":           stat,
		"pids/" + podDir + "/pids.current":                  "12\n",
		"pids/" + podDir + "/box/cgroup.procs":              "42\n43\n",
		"cpu/" + podDir + "/cpu.cfs_quota_us":               "-1\n",
		"cpu/" + containerDir + "/cpu.cfs_quota_us":         "20000\n",
		"cpu/" + containerDir + "/cpu.cfs_period_us":        "100000\n",
		"cpu/" + containerDir + "/cpu.stat":                 "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n",
		"memory/" + containerDir + "/memory.oom_control":    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	}
}

func v2Files() map[string]string {
	stat := "anon 3000000\nfile 500000\nfile_mapped 20000\ninactive_file 1000000\npgfault 7\npgmajfault 1\n"
	return map[string]string{
		"cgroup.controllers":                  "cpu memory pids\n",
		podDir + "/cpu.stat":                  "usage_usec 3000000\nuser_usec 1\n",
		containerDir + "/cpu.stat":            "usage_usec 2500000\nnr_periods 9\nnr_throttled 3\nthrottled_usec 1500000\n",
		podDir + "/cpu.max":                   "max 100000\n",
		containerDir + "/cpu.max":             "20000 100000\n",
		containerDir + "/memory.events":       "low 0\noom 2\noom_kill 2\n",
		podDir + "/memory.current":            "5000000\n",
		podDir + "/memory.max":                "max\n",
		podDir + "/memory.stat":               stat,
		podDir + "/memory.swap.current":       "4096\n",
		containerDir + "/memory.current":      "4000000\n",
		containerDir + "/memory.max":          "10000000\n",
		containerDir + "/memory.stat":         stat,
		containerDir + "/memory.swap.current": "4096\n",
		podDir + "/pids.current":              "12\n",
		podDir + "/box/cgroup.procs":          "42\n43\n",
	}
}

func procFiles(layer string) map[string]string {
	return map[string]string{
		"stat":               "cpu  100 0 50 9999 9 1 2 3 0 0\ncpu0 1 1\nbtime 1700000000\n",
		"meminfo":            "MemTotal: 8000 kB\nMemFree: 2000 kB\nMemAvailable: 5000 kB\nInactive(file): 1000 kB\nAnonPages: 500 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n",
		"vmstat":             "pgfault 11\npgmajfault 2\n",
		"loadavg":            "0.00 0.01 0.05 1/234 5678\n",
		"sys/kernel/pid_max": "32768\n",
		"self/net/dev":       "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n",
		"42/net/dev":         "Inter-|\n face |\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 1000 10 2 0 0 0 0 0 2000 20 3 0 0 0 0 0\n",
		"self/mounts":        "overlay /run/task/k8s.io/c1/rootfs overlay rw,lowerdir=/a,upperdir=" + layer + ",workdir=/w 0 0\nproc /proc proc rw 0 0\n",
	}
}

type fakeImages struct{ runtimeapi.ImageServiceClient }

func (fakeImages) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: &runtimeapi.UInt64Value{Value: 77},
	}}}, nil
}

// source measures a made-up machine with one pod; the clock is the test's.
func source(t *testing.T, cgroup map[string]string, now *time.Time) *Source {
	t.Helper()
	root := t.TempDir()
	layer, logs, volume := filepath.Join(root, "layer"), filepath.Join(root, "logs"), filepath.Join(root, "volume")
	write(t, filepath.Join(root, "cgroup"), cgroup)
	write(t, filepath.Join(root, "proc"), procFiles(layer))
	write(t, layer, map[string]string{"file": strings.Repeat("x", 10000)})
	write(t, logs, map[string]string{"0.log": "line\n"})
	write(t, volume, map[string]string{"data": strings.Repeat("x", 20000)})
	if err := os.Link(filepath.Join(layer, "file"), filepath.Join(layer, "again")); err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1"}}
	p.Status.QOSClass = corev1.PodQOSBurstable
	start := metav1.NewTime(time.Unix(1700000100, 0))
	status := corev1.PodStatus{StartTime: &start, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "nginx", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: start}}},
	}}
	snapshot := &pod.Snapshot{Pod: p, Status: status, SandboxID: "box", Containers: []pod.Container{
		{Name: "nginx", ID: "c1", State: runtimeapi.ContainerState_CONTAINER_RUNNING, LogPath: filepath.Join(logs, "0.log")},
		{Name: "nginx", ID: "c0", State: runtimeapi.ContainerState_CONTAINER_EXITED},
	}}
	return New(Config{
		NodeName: "box", DataDir: root, Images: fakeImages{},
		Pods:     func() []*pod.Snapshot { return []*pod.Snapshot{snapshot, {Pod: p}} },
		Volumes:  func(types.UID) map[string]string { return map[string]string{"scratch": volume} },
		CgroupFS: filepath.Join(root, "cgroup"), ProcFS: filepath.Join(root, "proc"),
		Now: func() time.Time { return *now },
	})
}

func TestSummary(t *testing.T) {
	for name, files := range map[string]map[string]string{"v1": v1Files(), "v2": v2Files()} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1700001000, 0)
			s := source(t, files, &now)
			sum := s.Summary(t.Context(), All)
			if len(sum.Pods) != 1 || len(sum.Pods[0].Containers) != 1 {
				t.Fatalf("pods %+v", sum.Pods)
			}
			p, c := sum.Pods[0], sum.Pods[0].Containers[0]
			for what, got := range map[string][2]*uint64{
				"pod cpu":          {p.CPU.UsageCoreNanoSeconds, new(uint64(3_000_000_000))},
				"pod memory":       {p.Memory.WorkingSetBytes, new(uint64(4_000_000))},
				"pod processes":    {p.Processes.Count, new(uint64(12))},
				"pod received":     {p.Network.RxBytes, new(uint64(1000))},
				"pod sent":         {p.Network.TxBytes, new(uint64(2000))},
				"pod files":        {p.EphemeralStorage.InodesUsed, new(uint64(2 + 2 + 2))},
				"container cpu":    {c.CPU.UsageCoreNanoSeconds, new(uint64(2_500_000_000))},
				"container free":   {c.Memory.AvailableBytes, new(uint64(7_000_000))},
				"container rss":    {c.Memory.RSSBytes, new(uint64(3_000_000))},
				"container faults": {c.Memory.MajorPageFaults, new(uint64(1))},
				"container files":  {c.Rootfs.InodesUsed, new(uint64(2))},
				"container logs":   {c.Logs.InodesUsed, new(uint64(2))},
				"node cpu":         {sum.Node.CPU.UsageCoreNanoSeconds, new(uint64(1_560_000_000))},
				"node working set": {sum.Node.Memory.WorkingSetBytes, new(uint64(5000 << 10))},
				"node swap":        {sum.Node.Swap.SwapUsageBytes, new(uint64(40 << 10))},
				"images":           {sum.Node.Runtime.ImageFs.UsedBytes, new(uint64(77))},
			} {
				if got[0] == nil || *got[0] != *got[1] {
					t.Errorf("%s: %v, want %d", what, got[0], *got[1])
				}
			}
			if p.Memory.AvailableBytes != nil || c.CPU.UsageNanoCores != nil {
				t.Errorf("known without a limit, or without a request before: %+v, %+v", p.Memory, c.CPU)
			}
			if u := s.Usage(t.Context())["u1"]; u.MemoryBytes != 4_000_000 || u.DiskBytes < 30000 || u.Containers["nginx"].MemoryBytes != 3_000_000 {
				t.Errorf("usage %+v", u)
			}
		})
	}
}

func TestRateIsOverTheTimeBetweenRequests(t *testing.T) {
	now := time.Unix(1700001000, 0)
	s := source(t, v2Files(), &now)
	s.Summary(t.Context(), Resources)
	now = now.Add(10 * time.Second)
	write(t, s.cfg.CgroupFS, map[string]string{containerDir + "/cpu.stat": "usage_usec 7500000\n"})
	c := s.Summary(t.Context(), Resources).Pods[0].Containers[0]
	if c.CPU.UsageNanoCores == nil || *c.CPU.UsageNanoCores != 500_000_000 {
		t.Errorf("five seconds of ten: %+v", c.CPU)
	}
	now = now.Add(time.Hour)
	if c := s.Summary(t.Context(), Resources).Pods[0].Containers[0]; c.CPU.UsageNanoCores != nil {
		t.Errorf("a rate over an hour: %d", *c.CPU.UsageNanoCores)
	}
}

func TestServe(t *testing.T) {
	now := time.Unix(1700001000, 0)
	s := source(t, v2Files(), &now)
	w := httptest.NewRecorder()
	s.ServeSummary(w, httptest.NewRequest("GET", "/stats/summary?only_cpu_and_memory=true", nil))
	var sum map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &sum); err != nil {
		t.Fatal(err)
	}
	if node := sum["node"].(map[string]any); node["nodeName"] != "box" || node["fs"] != nil {
		t.Errorf("summary %s", w.Body)
	}
	w = httptest.NewRecorder()
	s.ServeResource(w, httptest.NewRequest("GET", "/metrics/resource", nil))
	golden(t, "resource.txt", w.Body.Bytes())
}

func TestServeCAdvisor(t *testing.T) {
	now := time.Unix(1700001000, 0)
	for version, files := range map[string]map[string]string{"v1": v1Files(), "v2": v2Files()} {
		s := source(t, files, &now)
		w := httptest.NewRecorder()
		s.ServeCAdvisor(w, httptest.NewRequest("GET", "/metrics/cadvisor", nil))
		golden(t, "cadvisor-"+version+".txt", w.Body.Bytes())
	}
}

// golden compares with a file in testdata, or with -update writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestRealMachine(t *testing.T) {
	s := New(Config{NodeName: "here", DataDir: "/", Images: fakeImages{}, Pods: func() []*pod.Snapshot { return nil }})
	sum := s.Summary(t.Context(), All)
	if sum.Node.CPU == nil || sum.Node.Memory == nil || sum.Node.Fs == nil || sum.Node.Rlimit == nil || sum.Node.StartTime.IsZero() {
		t.Errorf("node %+v", sum.Node)
	}
}
