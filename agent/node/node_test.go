package node

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is a runtime whose network comes up when told.
type fakeCRI struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	network atomic.Bool
}

func (f *fakeCRI) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true},
			{Type: runtimeapi.NetworkReady, Status: f.network.Load(), Reason: "NetworkPluginNotReady", Message: "cni plugin not initialized"},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "runc"}, {Name: ""}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}, nil
}

func (f *fakeCRI) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "v2.4.2+unknown"}, nil
}

func (f *fakeCRI) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{RepoTags: []string{"a"}, Size: 1}, {RepoTags: []string{"b"}, Size: 2}}}, nil
}

func (f *fakeCRI) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func testMachine() *Machine {
	return &Machine{
		CPUs: 4, MemoryBytes: 8 << 30, HugePages: map[int64]int64{2 << 20: 64 << 20},
		MachineID: "m", BootID: "b", Kernel: "6.1", OSImage: "Debian",
	}
}

// waitNode waits until the node's object is as wanted.
func waitNode(t *testing.T, m *Manager, wanted func(*corev1.Node) bool) *corev1.Node {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if n := m.Node(); n != nil && wanted(n) {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node stays %+v", m.Node())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func condition(n *corev1.Node, t corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.NodeCondition{}
}

type recorded struct{ reasons chan string }

func (r recorded) Event(_ kruntime.Object, _, reason, _ string) { r.reasons <- reason }

func TestNodeBecomesReady(t *testing.T) {
	client, cri := fake.NewClientset(), &fakeCRI{}
	events := recorded{make(chan string, 100)}
	m, err := New(Config{
		Client: client, NodeName: "box", NodeIPs: func() []net.IP { return []net.IP{net.IPv4(10, 0, 0, 1)} }, Runtime: cri, Images: cri,
		Labels: map[string]string{"disk": "ssd"}, Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}},
		DataDir: t.TempDir(), Machine: testMachine(), Events: events,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	n := waitNode(t, m, func(n *corev1.Node) bool { return len(n.Status.Conditions) == 4 })
	if c := condition(n, corev1.NodeReady); c.Status != corev1.ConditionFalse || c.Reason != "KubeletNotReady" ||
		c.Message != "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized" {
		t.Errorf("without a network: %+v", c)
	}
	if n.Labels["disk"] != "ssd" || n.Labels[corev1.LabelHostname] != "box" || len(n.Spec.Taints) != 1 {
		t.Errorf("registered as %+v", n.ObjectMeta)
	}
	cri.network.Store(true)
	m.Wake()
	n = waitNode(t, m, func(n *corev1.Node) bool { return condition(n, corev1.NodeReady).Status == corev1.ConditionTrue })
	if n.Status.NodeInfo.ContainerRuntimeVersion != "containerd://2.4.2" || n.Status.Images[0].Names[0] != "b" ||
		n.Status.Addresses[0].Address != "10.0.0.1" || n.Status.Addresses[1].Type != corev1.NodeHostName {
		t.Errorf("status %+v", n.Status)
	}
	for reason := range events.reasons {
		if reason == "NodeReady" {
			break
		}
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, "box", metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "box" || *lease.Spec.LeaseDurationSeconds != 40 {
		t.Errorf("lease %+v, %v", lease, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A node whose agent starts again while no server answers stays Ready: pods ran on,
// and nothing of it is news.
func TestRestartedNodeStaysReady(t *testing.T) {
	since := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	old := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box", UID: "u"}}
	old.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: since}}
	client, cri := fake.NewClientset(old), &fakeCRI{}
	var late atomic.Int64
	client.PrependReactor("create", "nodes", func(ktesting.Action) (bool, kruntime.Object, error) {
		first := late.CompareAndSwap(0, int64(2*settleTime))
		return first, nil, errors.New("no server answers")
	})
	m, err := New(Config{
		Client: client, NodeName: "box", Runtime: cri, Images: cri, DataDir: t.TempDir(), Machine: testMachine(),
		Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	waitNode(t, m, func(*corev1.Node) bool { return !m.settles.Load().IsZero() })
	cri.network.Store(true)
	m.Wake()
	n := waitNode(t, m, func(n *corev1.Node) bool { return len(n.Status.Conditions) == 4 })
	if c := condition(n, corev1.NodeReady); c.Status != corev1.ConditionTrue || !c.LastTransitionTime.Equal(&since) {
		t.Errorf("after the start it is %+v", c)
	}
	cancel()
	running.Wait()

	late.Add(int64(settleTime))
	m.settle() // a server hangs
	o := m.observe(t.Context())
	o.notReady = errors.New("network is not ready")
	var written time.Time
	if err := m.writeStatus(t.Context(), m.cfg.Now(), o, &written); err != nil || !written.IsZero() {
		t.Errorf("written at %v, %v", written, err)
	}
	if err := m.writeStatus(t.Context(), m.cfg.Now().Add(settleTime), o, &written); err != nil || condition(m.Node(), corev1.NodeReady).Status != corev1.ConditionFalse {
		t.Errorf("a network that does not come up is not told: %v", err)
	}
}

func TestRegisterKeepsWhatOthersSet(t *testing.T) {
	old := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box", UID: "u", Labels: map[string]string{"theirs": "1", "ours": "old"}}}
	old.Spec.Unschedulable = true
	old.Status.NodeInfo.BootID = "another"
	client, events := fake.NewClientset(old), recorded{make(chan string, 9)}
	m, err := New(Config{Client: client, NodeName: "box", Runtime: &fakeCRI{}, Images: &fakeCRI{}, Labels: map[string]string{"ours": "new"}, DataDir: "/", Machine: testMachine(), Events: events})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := m.Node()
	if n.Labels["theirs"] != "1" || n.Labels["ours"] != "new" || !n.Spec.Unschedulable {
		t.Errorf("node %+v", n)
	}
	if reason := <-events.reasons; reason != "Rebooted" {
		t.Errorf("event %s", reason)
	}
}

func TestStatusIsWrittenOnlyOnChange(t *testing.T) {
	m, err := New(Config{Client: fake.NewClientset(), NodeName: "box", Runtime: &fakeCRI{}, Images: &fakeCRI{}, DataDir: "/", Machine: testMachine()})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := m.cfg.Client.(*fake.Clientset)
	now := time.Now()
	o := m.observe(t.Context())
	var written time.Time
	writes := func(at time.Time) int {
		t.Helper()
		client.ClearActions()
		if err := m.writeStatus(t.Context(), at, o, &written); err != nil {
			t.Fatal(err)
		}
		return len(client.Actions())
	}
	if writes(now) != 1 {
		t.Error("the first status was not written")
	}
	if writes(now.Add(time.Minute)) != 0 {
		t.Error("an unchanged status was written")
	}
	if writes(now.Add(6*time.Minute)) != 1 {
		t.Error("no heartbeat after five minutes")
	}
	o.ips = []net.IP{net.IPv4(10, 0, 0, 2), net.IPv4(10, 0, 0, 3)}
	if writes(now.Add(7*time.Minute)) != 1 {
		t.Error("new addresses were not written")
	}
	o.ips = []net.IP{net.IPv4(10, 0, 0, 4)}
	if writes(now.Add(7 * time.Minute)); len(m.Node().Status.Addresses) != 2 || m.Node().Status.Addresses[0].Address != "10.0.0.4" {
		t.Errorf("addresses %+v", m.Node().Status.Addresses)
	}
}

func TestAllocatable(t *testing.T) {
	m := testMachine()
	capacity := m.capacity(100<<30, 110)
	got := allocatable(capacity, corev1.ResourceList{corev1.ResourceCPU: *resourceQuantity("500m")})
	for name, want := range map[corev1.ResourceName]string{
		"cpu": "3500m", "memory": "8028Mi", "pods": "110", "ephemeral-storage": "90Gi", "hugepages-2Mi": "64Mi",
	} {
		if q := got[name]; q.Cmp(*resourceQuantity(want)) != 0 {
			t.Errorf("%s: %s, want %s", name, q.String(), want)
		}
	}
}

func TestConditionsKeepTransitionTimes(t *testing.T) {
	start := metav1.NewTime(time.Unix(1000, 0))
	o := observation{pressure: map[corev1.NodeConditionType]bool{}}
	first := conditions(start, []corev1.NodeCondition{{Type: "NetworkUnavailable", Status: corev1.ConditionFalse}}, o)
	later := metav1.NewTime(start.Add(time.Minute))
	o.pressure[corev1.NodeDiskPressure] = true
	second := conditions(later, first, o)
	if len(second) != 5 || second[4].Type != corev1.NodeReady {
		t.Fatalf("conditions %+v", second)
	}
	for _, c := range second {
		want := start
		switch c.Type {
		case corev1.NodeDiskPressure:
			want = later
		case "NetworkUnavailable":
			continue
		}
		if !c.LastTransitionTime.Equal(&want) || !c.LastHeartbeatTime.Equal(&later) {
			t.Errorf("%s: %v, %v", c.Type, c.LastTransitionTime, c.LastHeartbeatTime)
		}
	}
	if changed := transitions(first, second); len(changed) != 1 || eventReason(changed[0]) != "NodeHasDiskPressure" {
		t.Errorf("transitions %+v", changed)
	}
}

func TestReadMachine(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"proc/meminfo":                                          "MemTotal:       16384 kB\nMemAvailable:    4096 kB\nHugePages_Total:       0\n",
		"proc/sys/kernel/random/boot_id":                        "boot\n",
		"proc/sys/kernel/osrelease":                             "6.1.0\n",
		"etc/machine-id":                                        "machine\n",
		"etc/os-release":                                        "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
		"sys/class/dmi/id/product_uuid":                         "ABC\n",
		"sys/kernel/mm/hugepages/junk":                          "",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "3\n",
	} {
		file := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := ReadMachine(root)
	if err != nil {
		t.Fatal(err)
	}
	if m.MemoryBytes != 16<<20 || m.BootID != "boot" || m.Kernel != "6.1.0" || m.OSImage != "Debian GNU/Linux 12" ||
		m.SystemUUID != "abc" || m.MachineID != "machine" || m.HugePages[2<<20] != 6<<20 {
		t.Errorf("%+v", m)
	}
}

func TestPressureOutlivesItsCause(t *testing.T) {
	var p pressure
	now := time.Unix(0, 0)
	low := signals{memoryKnown: true, memoryAvailable: 50 << 20, nodeBytes: 100, nodeFree: 50}
	if holds := p.note(now, low); !holds[corev1.NodeMemoryPressure] || holds[corev1.NodeDiskPressure] || len(p.met) != 1 {
		t.Errorf("%v, %v", holds, p.met)
	}
	fine := signals{memoryKnown: true, memoryAvailable: 1 << 30, nodeBytes: 100, nodeFree: 50}
	if holds := p.note(now.Add(time.Minute), fine); !holds[corev1.NodeMemoryPressure] || len(p.met) != 0 {
		t.Errorf("after a minute: %v, %v", holds, p.met)
	}
	if holds := p.note(now.Add(6*time.Minute), fine); holds[corev1.NodeMemoryPressure] {
		t.Errorf("after six: %v", holds)
	}
}

func TestCrossed(t *testing.T) {
	for name, c := range map[string]struct {
		s    signals
		want corev1.ResourceName
	}{
		"nothing known": {signals{}, ""},
		"node disk":     {signals{nodeBytes: 1000, nodeFree: 99}, corev1.ResourceEphemeralStorage},
		"image disk":    {signals{imageBytes: 1000, imageFree: 149}, corev1.ResourceEphemeralStorage},
		"inodes":        {signals{nodeInodes: 100, nodeInodesFr: 4}, resourceInodes},
		"processes":     {signals{pids: 1000, pidsFree: 1}, resourcePIDs},
		"just enough":   {signals{nodeBytes: 1000, nodeFree: 100, imageBytes: 1000, imageFree: 150}, ""},
	} {
		met := crossed(c.s)
		if c.want == "" && len(met) != 0 || c.want != "" && (len(met) != 1 || met[0].resource != c.want) {
			t.Errorf("%s: %+v", name, met)
		}
	}
}

func pod(name string, priority int32, request string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	p.Spec.Priority = &priority
	p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"memory": *resourceQuantity(request)}}}}
	return p
}

func TestRank(t *testing.T) {
	pods := []*corev1.Pod{pod("within", 0, "1Gi"), pod("important", 1000, "10Mi"), pod("above", 0, "10Mi"), pod("farabove", 0, "10Mi"), pod("unknown", 0, "10Mi")}
	usage := map[types.UID]Usage{
		"within": {MemoryBytes: 900 << 20}, "important": {MemoryBytes: 800 << 20},
		"above": {MemoryBytes: 20 << 20}, "farabove": {MemoryBytes: 300 << 20},
	}
	var order []string
	for _, p := range rank(pods, corev1.ResourceMemory, usage) {
		order = append(order, p.Name)
	}
	for i, want := range []string{"farabove", "above", "important", "unknown", "within"} {
		if order[i] != want {
			t.Fatalf("order %v", order)
		}
	}
}

func TestEvictionMessage(t *testing.T) {
	got := evictionMessage(pod("p", 0, "10Mi"), threshold{corev1.NodeMemoryPressure, corev1.ResourceMemory, 100 << 20, 50 << 20},
		Usage{Containers: map[string]Usage{"c": {MemoryBytes: 20 << 20}}})
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// evicted notes whom it was told to evict.
type evicted struct{ uids []types.UID }

func (e *evicted) Evict(uid types.UID, _, _, _ string, _ *int64) { e.uids = append(e.uids, uid) }

func TestReliefTriesImagesBeforePods(t *testing.T) {
	e, freed := &evicted{}, int64(0)
	m, err := New(Config{
		Client: fake.NewClientset(), NodeName: "box", Runtime: &fakeCRI{}, Images: &fakeCRI{}, Machine: testMachine(),
		Evictor: e, Pods: func() []*corev1.Pod {
			return []*corev1.Pod{pod("critical", 2_000_000_001, "1Mi"), pod("victim", 0, "1Mi")}
		},
		Reclaim: func(_ context.Context, _ time.Time, want int64) (int64, error) { return min(want, freed), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	low := signals{nodeBytes: 1000, nodeFree: 50}
	freed = 50
	m.pressure.note(time.Unix(0, 0), low)
	m.relieve(t.Context(), time.Unix(0, 0))
	if len(e.uids) != 0 {
		t.Errorf("evicted %v although images sufficed", e.uids)
	}
	freed = 10
	m.relieve(t.Context(), time.Unix(0, 0))
	if len(e.uids) != 1 || e.uids[0] != "victim" {
		t.Errorf("evicted %v", e.uids)
	}
}

func resourceQuantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}
