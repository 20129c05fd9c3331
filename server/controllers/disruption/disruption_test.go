package disruption

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/harness"
)

func budget(minAvailable, maxUnavailable string) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "b", Generation: 1},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: harness.Selector("web")},
	}
	if minAvailable != "" {
		v := intstr.Parse(minAvailable)
		b.Spec.MinAvailable = &v
	}
	if maxUnavailable != "" {
		v := intstr.Parse(maxUnavailable)
		b.Spec.MaxUnavailable = &v
	}
	return b
}

func pods(ready, unready int, owner string) (out []*corev1.Pod) {
	for i := range ready + unready {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: fmt.Sprintf("p%d", i)}, Status: *harness.Running()}
		if i >= ready {
			p.Status = *harness.Unready()
		}
		if owner != "" {
			yes := true
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, UID: types.UID(owner), Controller: &yes}}
		}
		out = append(out, p)
	}
	return out
}

func TestReconcile(t *testing.T) {
	now := time.Now()
	granted := budget("2", "")
	granted.Status.DisruptedPods = map[string]metav1.Time{"p0": metav1.NewTime(now), "p1": metav1.NewTime(now.Add(-time.Hour)), "gone": metav1.NewTime(now)}
	for _, c := range []struct {
		name   string
		budget *policyv1.PodDisruptionBudget
		pods   []*corev1.Pod
		scale  int32 // -1: the controller has gone; -2: its kind has no scale
		want   string
		event  string
	}{
		{"at least two", budget("2", ""), pods(3, 0, ""), 0, "expected 3, desired 2, healthy 3, allowed 1 SufficientPods", ""},
		{"not healthy enough", budget("2", ""), pods(1, 2, ""), 0, "expected 3, desired 2, healthy 1, allowed 0 InsufficientPods", ""},
		{"no pods", budget("0", ""), nil, 0, "expected 0, desired 0, healthy 0, allowed 0 InsufficientPods", "NoPods"},
		{"half, rounded up", budget("50%", ""), pods(3, 0, "rs"), 5, "expected 5, desired 3, healthy 3, allowed 0 InsufficientPods", ""},
		{"at most one missing", budget("", "1"), pods(5, 0, "rs"), 5, "expected 5, desired 4, healthy 5, allowed 1 SufficientPods", ""},
		{"more than there are", budget("", "9"), pods(5, 0, "rs"), 5, "expected 5, desired 0, healthy 5, allowed 5 SufficientPods", ""},
		{"unmanaged", budget("", "1"), pods(2, 0, ""), 0, "expected 0, desired 0, healthy 2, allowed 0 InsufficientPods", "UnmanagedPods"},
		{"controller has gone", budget("", "1"), pods(2, 0, "rs"), -1, "expected 0, desired 0, healthy 0, allowed 0 SyncFailed", "CalculateExpectedPodCountFailed"},
		{"no scale", budget("", "1"), pods(2, 0, "rs"), -2, "expected 0, desired 0, healthy 0, allowed 0 SyncFailed", "CalculateExpectedPodCountFailed"},
		{"one is on its way", granted, pods(4, 0, ""), 0, "expected 4, desired 2, healthy 3, allowed 1 SufficientPods", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Snapshot{Budget: c.budget, Pods: c.pods, Scale: func(_ string, ref *metav1.OwnerReference) (Scale, bool, error) {
				if c.scale == -2 {
					return Scale{}, false, fmt.Errorf("daemonsets.apps does not implement the scale subresource")
				}
				return Scale{ref.UID, c.scale}, c.scale >= 0, nil
			}}
			plan := Reconcile(now, s)
			st := plan.Status
			got := fmt.Sprintf("expected %d, desired %d, healthy %d, allowed %d %s", st.ExpectedPods, st.DesiredHealthy, st.CurrentHealthy, st.DisruptionsAllowed, st.Conditions[0].Reason)
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if c.event == "" && len(plan.Events) > 0 || c.event != "" && (len(plan.Events) != 1 || plan.Events[0].Reason != c.event) {
				t.Errorf("events %v, want %s", plan.Events, c.event)
			}
			s.Budget = s.Budget.DeepCopy()
			s.Budget.Status = st
			if again := Reconcile(now.Add(time.Second), s); fmt.Sprint(again.Status) != fmt.Sprint(st) {
				t.Errorf("a second look gives %+v, the first %+v", again.Status, st)
			}
		})
	}
	if plan := Reconcile(now, Snapshot{Budget: granted, Pods: pods(4, 0, "")}); len(plan.NotDeleted) != 1 || plan.NotDeleted[0].Name != "p1" || plan.Again != deletionTimeout {
		t.Errorf("not deleted %v, again in %s", plan.NotDeleted, plan.Again)
	}
}

// TestDeploymentCountsAsOne has pods of two sets of one deployment.
func TestDeploymentCountsAsOne(t *testing.T) {
	h := harness.New(t)
	h.Run(Controller(h.Registry, h.Events, time.Now))
	five := int32(5)
	d := harness.Create(h, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web"},
		Spec: appsv1.DeploymentSpec{Replicas: &five, Selector: harness.Selector("web"), Template: harness.Template("web")}})
	for _, name := range []string{"web-1", "web-2"} {
		rs := harness.Create(h, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}},
			Spec:       appsv1.ReplicaSetSpec{Replicas: &five, Selector: harness.Selector("web"), Template: harness.Template("web")}})
		template := harness.Template("web")
		harness.Create(h, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, Labels: template.Labels, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}},
			Spec:       template.Spec})
		harness.ChangeStatus(h, name, func(p *corev1.Pod) { p.Status = *harness.Running() })
	}
	harness.Create(h, budget("", "4"))
	harness.Wait(h, "b", "a budget over five pods", func(b *policyv1.PodDisruptionBudget) bool {
		return b.Status.ExpectedPods == 5 && b.Status.DesiredHealthy == 1 && b.Status.CurrentHealthy == 2 && b.Status.DisruptionsAllowed == 1
	})
	harness.ChangeStatus(h, "web-1", func(p *corev1.Pod) { p.Status = *harness.Unready() })
	harness.Wait(h, "b", "no disruption allowed", func(b *policyv1.PodDisruptionBudget) bool { return b.Status.DisruptionsAllowed == 0 })
}

func TestStaleDisruption(t *testing.T) {
	h := harness.New(t)
	h.Run(Stale(h.Registry, time.Now))
	template := harness.Template("web")
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "p"}, Spec: template.Spec})
	harness.ChangeStatus(h, "p", func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: "EvictionByEvictionAPI", LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour))})
	})
	harness.Wait(h, "p", "the mark to be taken back", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.DisruptionTarget {
				return c.Status == corev1.ConditionFalse
			}
		}
		return false
	})
}
