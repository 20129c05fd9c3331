package daemonset

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/harness"
)

func daemonSet(name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name},
		Spec:       appsv1.DaemonSetSpec{Selector: harness.Selector(name), Template: harness.Template(name)},
	}
}

func start(t *testing.T, nodes int) *harness.Harness {
	h := harness.New(t)
	for i := range nodes {
		h.AddNode(fmt.Sprintf("n%d", i))
	}
	h.Run(Controller(h.Registry, h.Pods, h.Events, time.Now))
	h.Kubelet(nil)
	return h
}

func available(n int32) func(*appsv1.DaemonSet) bool {
	return func(ds *appsv1.DaemonSet) bool {
		s := ds.Status
		return s.ObservedGeneration == ds.Generation && s.DesiredNumberScheduled == n && s.UpdatedNumberScheduled == n && s.NumberAvailable == n && s.NumberMisscheduled == 0
	}
}

func TestOnePodPerNode(t *testing.T) {
	h := start(t, 2)
	harness.Create(h, daemonSet("d"))
	harness.Wait(h, "d", "two pods", available(2))
	h.AddNode("n2")
	h.AddNode("closed", func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}}
	})
	h.AddNode("cordoned", func(n *corev1.Node) {
		n.Spec.Unschedulable = true
		n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}
	})
	ds := harness.Wait(h, "d", "a pod on new nodes but not on the closed one", available(4))
	if ds.Status.CurrentNumberScheduled != 4 || ds.Status.NumberReady != 4 || ds.Status.NumberUnavailable != 0 {
		t.Errorf("status %+v", ds.Status)
	}
	for _, p := range harness.List[*corev1.Pod](h) {
		if p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == "" || !metav1.IsControlledBy(p, ds) {
			t.Errorf("pod %s has labels %v and owners %v", p.Name, p.Labels, p.OwnerReferences)
		}
	}
	if !h.Events.Has("Normal SuccessfulCreate Created pod: d-") {
		t.Errorf("events:\n%s", h.Events)
	}
}

func TestRolloutAndUndo(t *testing.T) {
	for _, c := range []struct {
		name               string
		surge, unavailable int32
	}{{"one at a time", 0, 1}, {"two at a time", 0, 2}, {"with surge", 1, 0}} {
		t.Run(c.name, func(t *testing.T) {
			h := start(t, 4)
			ds := daemonSet("d")
			surge, unavailable := intstr.FromInt32(c.surge), intstr.FromInt32(c.unavailable)
			ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable}}
			harness.Create(h, ds)
			first := harness.Wait(h, "d", "four pods", available(4))
			harness.Change(h, "d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "orch.local/other" })
			harness.Wait(h, "d", "the rollout", available(4))
			for _, p := range harness.List[*corev1.Pod](h) {
				if p.DeletionTimestamp == nil && p.Spec.Containers[0].Image != "orch.local/other" {
					t.Errorf("pod %s has image %s", p.Name, p.Spec.Containers[0].Image)
				}
			}
			harness.Change(h, "d", func(ds *appsv1.DaemonSet) { ds.Spec.Template = first.Spec.Template })
			harness.Wait(h, "d", "the rollback", available(4))
			revisions := harness.WaitAll(h, "two revisions", func(all []*appsv1.ControllerRevision) bool { return len(all) == 2 })
			newest := revisions[0]
			if revisions[1].Revision > newest.Revision {
				newest = revisions[1]
			}
			if newest.Revision != 3 {
				t.Errorf("the newest revision is %d", newest.Revision)
			}
		})
	}
}

func TestOnDelete(t *testing.T) {
	h := start(t, 2)
	ds := daemonSet("d")
	ds.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
	harness.Create(h, ds)
	harness.Wait(h, "d", "two pods", available(2))
	harness.Change(h, "d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "orch.local/other" })
	harness.Wait(h, "d", "the new template seen", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration == ds.Generation && ds.Status.UpdatedNumberScheduled == 0
	})
	harness.Delete[*corev1.Pod](h, harness.List[*corev1.Pod](h)[0].Name)
	harness.Wait(h, "d", "one pod replaced", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.UpdatedNumberScheduled == 1 && ds.Status.NumberAvailable == 2
	})
}

func pod(name, node, hash string, status *corev1.PodStatus) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: hash}},
		Spec: corev1.PodSpec{NodeName: node}, Status: *status}
}

func TestReconcile(t *testing.T) {
	node := func(name string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	going := pod("going", "a", "new", harness.Running())
	going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	bound := func(name string) *corev1.Pod { return pod(name, "a", "new", harness.Running()) }
	lost := podFor(daemonSet("d"), "new", "gone")
	lost.Name = "lost"
	noExecute := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute}
	noSchedule := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoSchedule}
	for _, c := range []struct {
		name    string
		nodes   []*corev1.Node
		pods    []*corev1.Pod
		backoff time.Duration
		create  []string
		remove  []string
	}{
		{"missing", []*corev1.Node{node("a"), node("b")}, nil, 0, []string{"a", "b"}, nil},
		{"in place", []*corev1.Node{node("a")}, []*corev1.Pod{bound("p")}, 0, nil, nil},
		{"too many", []*corev1.Node{node("a")}, []*corev1.Pod{bound("p1"), bound("p2")}, 0, nil, []string{"p2"}},
		{"its predecessor still goes", []*corev1.Node{node("a")}, []*corev1.Pod{going}, 0, nil, nil},
		{"NoExecute drives out", []*corev1.Node{node("a", noExecute)}, []*corev1.Pod{bound("p")}, 0, nil, []string{"p"}},
		{"NoSchedule does not", []*corev1.Node{node("a", noSchedule)}, []*corev1.Pod{bound("p")}, 0, nil, nil},
		{"failed", []*corev1.Node{node("a")}, []*corev1.Pod{pod("p", "a", "new", harness.Failed(1))}, 0, nil, []string{"p"}},
		{"failed, in backoff", []*corev1.Node{node("a")}, []*corev1.Pod{pod("p", "a", "new", harness.Failed(1))}, time.Second, nil, nil},
		{"its node has gone", []*corev1.Node{node("a")}, []*corev1.Pod{bound("p"), lost}, 0, nil, []string{"lost"}},
		{"old", []*corev1.Node{node("a"), node("b")},
			[]*corev1.Pod{pod("a", "a", "old", harness.Running()), pod("b", "b", "old", harness.Running())}, 0, nil, []string{"a"}},
		{"old, and one is not ready", []*corev1.Node{node("a"), node("b")},
			[]*corev1.Pod{pod("a", "a", "old", harness.Running()), pod("b", "b", "old", harness.Unready())}, 0, nil, []string{"b"}},
		{"old, and a new one is not ready", []*corev1.Node{node("a"), node("b")},
			[]*corev1.Pod{pod("a", "a", "old", harness.Running()), pod("b", "b", "new", harness.Unready())}, 0, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ds := daemonSet("d")
			one := intstr.FromInt32(1)
			ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one}}
			plan := Reconcile(time.Now().Add(time.Second), Snapshot{Set: ds, Nodes: c.nodes, Pods: c.pods, Hash: "new", Backoff: func(string) time.Duration { return c.backoff }})
			var removed []string
			for _, d := range plan.Delete {
				removed = append(removed, d.Pod.Name)
			}
			if fmt.Sprint(plan.Create) != fmt.Sprint(c.create) || fmt.Sprint(removed) != fmt.Sprint(c.remove) {
				t.Errorf("create on %v, delete %v; want %v, %v", plan.Create, removed, c.create, c.remove)
			}
		})
	}
}
