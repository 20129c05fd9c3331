package nodes

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/harness"
	"orch/server/registry"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func node(ready corev1.ConditionStatus, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", CreationTimestamp: metav1.NewTime(start)}}
	if ready != "" {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func TestTaints(t *testing.T) {
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	foreign := func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "mine", Effect: corev1.TaintEffectNoSchedule})
	}
	full := func(n *corev1.Node) {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue})
	}
	stale := func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute})
	}
	for _, c := range []struct {
		name string
		node *corev1.Node
		want string
	}{
		{"ready", node(corev1.ConditionTrue), ""},
		{"new", node(""), "not-ready:NoSchedule"},
		{"not ready", node(corev1.ConditionFalse), "not-ready:NoExecute not-ready:NoSchedule"},
		{"silent", node(corev1.ConditionUnknown), "unreachable:NoExecute unreachable:NoSchedule"},
		{"cordoned, disk full", node(corev1.ConditionTrue, cordoned, full), "disk-pressure:NoSchedule unschedulable:NoSchedule"},
		{"back again", node(corev1.ConditionTrue, stale, foreign), "mine:NoSchedule"},
	} {
		taints, changed := Taints(c.node, start)
		var got []string
		for _, taint := range taints {
			got = append(got, strings.TrimPrefix(taint.Key, "node.kubernetes.io/")+":"+string(taint.Effect))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
		c.node.Spec.Taints = taints
		if _, again := Taints(c.node, start); again || changed != (c.want != "") {
			t.Errorf("%s: changed %v, again %v", c.name, changed, again)
		}
	}
}

func TestTolerance(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	bad := corev1.Taint{Key: "bad", Effect: corev1.TaintEffectNoExecute}
	worse := corev1.Taint{Key: "worse", Value: "very", Effect: corev1.TaintEffectNoExecute}
	tolerate := func(key string, s *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, TolerationSeconds: s}
	}
	for _, c := range []struct {
		name        string
		taints      []corev1.Taint
		tolerations []corev1.Toleration
		patience    time.Duration
		evict       bool
	}{
		{"no taint", nil, nil, 0, false},
		{"only new pods are kept away", []corev1.Taint{{Key: "bad", Effect: corev1.TaintEffectNoSchedule}}, nil, 0, false},
		{"not tolerated", []corev1.Taint{bad}, nil, 0, true},
		{"tolerated for ever", []corev1.Taint{bad}, []corev1.Toleration{tolerate("bad", nil)}, 0, false},
		{"tolerated for a while", []corev1.Taint{bad}, []corev1.Toleration{tolerate("bad", seconds(30))}, 30 * time.Second, true},
		{"the shortest counts", []corev1.Taint{bad, worse}, []corev1.Toleration{tolerate("bad", seconds(30)), tolerate("worse", seconds(5))}, 5 * time.Second, true},
		{"one is not tolerated", []corev1.Taint{bad, worse}, []corev1.Toleration{tolerate("bad", nil)}, 0, true},
		{"another value", []corev1.Taint{worse}, []corev1.Toleration{{Key: "worse", Value: "a little"}}, 0, true},
		{"everything", []corev1.Taint{bad, worse}, []corev1.Toleration{tolerate("", nil)}, 0, false},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: c.tolerations}}
		n := &corev1.Node{Spec: corev1.NodeSpec{Taints: c.taints}}
		if patience, evict := tolerance(p, n); patience != c.patience || evict != c.evict {
			t.Errorf("%s: %s %v", c.name, patience, evict)
		}
	}
}

func boundPod(h *harness.Harness, name, node string, tolerations ...corev1.Toleration) {
	template := harness.Template("web")
	template.Spec.NodeName, template.Spec.Tolerations = node, tolerations
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}, Spec: template.Spec})
}

func TestEviction(t *testing.T) {
	h := harness.New(t)
	h.Run(Eviction(h.Registry, h.Pods, h.Events, time.Now))
	h.AddNode("node")
	second := int64(1)
	boundPod(h, "leaves", "node")
	boundPod(h, "stays", "node", corev1.Toleration{Operator: corev1.TolerationOpExists})
	boundPod(h, "leaves-later", "node", corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &second})
	if _, err := registry.Of[*corev1.Node](h.Registry).Mutate(h.Context(), "", "node", func(n *corev1.Node) error {
		n.Spec.Taints = []corev1.Taint{{Key: "bad", Effect: corev1.TaintEffectNoExecute}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"leaves", "leaves-later"} {
		p := harness.Wait(h, name, "its deletion", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
		c := p.Status.Conditions[len(p.Status.Conditions)-1]
		if c.Type != corev1.DisruptionTarget || c.Reason != "DeletionByTaintManager" {
			t.Errorf("%s: condition %+v", name, c)
		}
	}
	if p := harness.Get[*corev1.Pod](h, "stays"); p.DeletionTimestamp != nil {
		t.Error("a pod that tolerates everything is deleted")
	}
	if !h.Events.Has("Normal TaintManagerEviction Marking for deletion Pod ns/leaves") {
		t.Errorf("events:\n%s", h.Events)
	}
}

func TestSilentNodeIsMarked(t *testing.T) {
	h := harness.New(t)
	var late atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	h.Run(Lifecycle(h.Registry, h.Pods, h.Events, now))
	h.AddNode("n")
	door := registry.Of[*corev1.Node](h.Registry)
	report := func() {
		if _, err := door.MutateStatus(h.Context(), "", "n", func(n *corev1.Node) error {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(now()).Rfc3339Copy()}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	report()
	boundPod(h, "p", "n")
	harness.ChangeStatus(h, "p", func(p *corev1.Pod) { p.Status = *harness.Running() })
	harness.Wait(h, "n", "no taints", func(n *corev1.Node) bool { return len(n.Spec.Taints) == 0 })
	late.Store(int64(2 * gracePeriod))
	if _, err := door.Mutate(h.Context(), "", "n", func(n *corev1.Node) error { n.Labels["look"] = "now"; return nil }); err != nil {
		t.Fatal(err)
	}
	n := harness.Wait(h, "n", "it to be unreachable", func(n *corev1.Node) bool { return len(n.Spec.Taints) == 2 })
	if c := condition(n, corev1.NodeReady); c.Status != corev1.ConditionUnknown || c.Reason != "NodeStatusUnknown" || c.Message != "Kubelet stopped posting node status." {
		t.Errorf("condition %+v", c)
	}
	harness.Wait(h, "p", "its pod out of service", func(p *corev1.Pod) bool { return !podReady(p) })
	renewed := metav1.NewMicroTime(now())
	if _, err := registry.Of[*coordinationv1.Lease](h.Registry).Create(h.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: "n"}, Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}); err != nil {
		t.Fatal(err)
	}
	report()
	harness.Wait(h, "n", "it back", func(n *corev1.Node) bool { return len(n.Spec.Taints) == 0 })
}

func TestPodNetworks(t *testing.T) {
	h := harness.New(t)
	_, cluster, _ := net.ParseCIDR("10.42.0.0/23")
	h.Run(PodNetwork(h.Registry, cluster))
	h.AddNode("a")
	h.AddNode("b")
	harness.WaitAll(h, "a network each", func(all []*corev1.Node) bool {
		return len(all) == 2 && all[0].Spec.PodCIDR != "" && all[1].Spec.PodCIDR != "" && all[0].Spec.PodCIDR != all[1].Spec.PodCIDR
	})
	if _, err := freeShare(cluster, registry.Of[*corev1.Node](h.Registry).List("", nil)); err == nil || !strings.Contains(err.Error(), "--cluster-cidr") {
		t.Errorf("a third node: %v", err)
	}
}

func TestFreeShare(t *testing.T) {
	for _, tt := range []struct{ cluster, held, want string }{
		{"10.42.0.0/16", "", "10.42.0.0/24"},
		{"10.42.0.0/16", "10.42.0.0/24 10.42.2.0/24", "10.42.1.0/24"},
		{"10.42.0.0/16", "10.42.0.0/25 10.42.1.128/25", "10.42.2.0/24"},               // given by hand
		{"10.42.0.0/16", "10.42.0.0/23 10.42.0.0/16", "10.42.0.0/24"},                 // more than a share: nobody follows it
		{"10.42.128.0/17", "10.42.0.0/17 10.43.0.0/24 fd00::/64 x", "10.42.128.0/24"}, // of other networks
		{"10.42.0.0/24", "10.42.0.0/24", ""},
		{"10.42.0.0/25", "", ""},
		{"fd00::/112", "", ""},
	} {
		_, cluster, err := net.ParseCIDR(tt.cluster)
		if err != nil {
			t.Fatal(err)
		}
		nodes := []*corev1.Node{{}}
		for _, share := range strings.Fields(tt.held) {
			nodes = append(nodes, &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: share}})
		}
		if got, err := freeShare(cluster, nodes); got != tt.want || (err == nil) != (got != "") {
			t.Errorf("of %s, with %s held: %q, %v", tt.cluster, tt.held, got, err)
		}
	}
}

func TestOrphans(t *testing.T) {
	h := harness.New(t)
	var late atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	h.Run(Orphans(h.Registry, h.Pods, now))
	n := h.AddNode("n", func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
	})
	boundPod(h, "p", n.Name)
	harness.Delete[*corev1.Pod](h, "p") // nobody there to confirm
	harness.WaitAll(h, "the pod of a node out of service gone", func(all []*corev1.Pod) bool { return len(all) == 0 })

	finished := newFinishedPods()
	finished.limit = 2
	for i := range 4 {
		finished.observe(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i)), CreationTimestamp: metav1.NewTime(start.Add(time.Duration(i) * time.Minute))},
			Status: *harness.Succeeded()}, false)
	}
	for i, want := range []bool{true, true, false, false} {
		if got := finished.surplus(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprint(i))}}); got != want {
			t.Errorf("pod %d of four is too many: %v", i, got)
		}
	}
	if finished.lostFor("gone", start) != 0 || finished.lostFor("gone", start.Add(time.Minute)) != time.Minute {
		t.Error("a missed node does not count from the first question")
	}
}

// A share that nobody follows is told of at its node, and no more once the cause
// has gone.
func TestPodNetworkCheck(t *testing.T) {
	h := harness.New(t)
	h.Run(PodNetworkCheck(h.Registry, netip.MustParsePrefix("10.42.0.0/16"), record.NewFakeRecorder(100), time.Now))
	add := func(name, share string) {
		h.AddNode(name, func(n *corev1.Node) { n.Spec.PodCIDR = share })
	}
	add("first", "10.42.1.0/24")
	add("services", "10.43.0.0/24")
	add("everything", "10.42.0.0/16")
	add("second", "10.42.1.0/25")
	told := func(reason, message string) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool {
			c := condition(n, corev1.NodeNetworkUnavailable)
			return c.Reason == reason && strings.Contains(c.Message, message)
		}
	}
	harness.Wait(h, "services", "the refusal", told(shareRefused, "outside of the cluster network 10.42.0.0/16"))
	harness.Wait(h, "everything", "the refusal", told(shareRefused, "more than a node's share"))
	harness.Wait(h, "second", "the refusal", told(shareRefused, "which node first has had for longer"))
	nodes := registry.Of[*corev1.Node](h.Registry)
	if n, err := nodes.Get("", "first"); err != nil || len(n.Status.Conditions) != 0 {
		t.Errorf("the first one: %v, %v", n.Status.Conditions, err)
	}
	if err := nodes.Delete(t.Context(), "", "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	harness.Wait(h, "second", "its right", told(shareAccepted, "is followed"))
}
