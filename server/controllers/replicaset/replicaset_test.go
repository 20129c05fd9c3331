package replicaset

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/harness"
)

func pods(running, failed int) (out []*corev1.Pod) {
	for i := range running + failed {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": "web"}}, Status: *harness.Running()}
		if i >= running {
			p.Status = *harness.Failed(1)
		}
		out = append(out, p)
	}
	return out
}

func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		want           int32
		pods           []*corev1.Pod
		create, remove int
	}{
		{3, nil, 3, 0}, {3, pods(3, 0), 0, 0}, {3, pods(2, 1), 1, 0}, {1, pods(3, 2), 0, 2}, {0, pods(2, 0), 0, 2}, {2000, nil, maxBurst, 0},
	} {
		plan := Reconcile(time.Now(), c.want, 0, c.pods, func() []*corev1.Pod { return c.pods })
		if plan.Create != c.create || len(plan.Delete) != c.remove {
			t.Errorf("%d of %d: create %d, delete %d", len(c.pods), c.want, plan.Create, len(plan.Delete))
		}
	}
	if plan := Reconcile(time.Now(), 1, 60, pods(1, 0), nil); plan.Again <= 50*time.Second || plan.Again > time.Minute {
		t.Errorf("a pod that is ready for a moment is looked at again in %s", plan.Again)
	}
}

func TestCount(t *testing.T) {
	all := pods(3, 1)
	all[0].Status = *harness.Unready()
	all[1].DeletionTimestamp = &metav1.Time{Time: time.Now()}
	got := Count(time.Now().Add(time.Second), labels.Set{"app": "web"}, 0, all)
	if want := (Counts{Replicas: 2, Labeled: 2, Ready: 1, Available: 1, Terminating: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func start(t *testing.T) *harness.Harness {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(Controller(h.Registry, h.Pods, h.Events, time.Now), ReplicationControllers(h.Registry, h.Pods, h.Events, time.Now))
	h.Kubelet(nil)
	return h
}

func TestSetKeepsItsNumber(t *testing.T) {
	h := start(t)
	three := int32(3)
	harness.Create(h, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web"},
		Spec: appsv1.ReplicaSetSpec{Replicas: &three, Selector: harness.Selector("web"), Template: harness.Template("web")}})
	has := func(n int32) func(*appsv1.ReplicaSet) bool {
		return func(rs *appsv1.ReplicaSet) bool {
			return rs.Status.ObservedGeneration == rs.Generation && rs.Status.Replicas == n && rs.Status.AvailableReplicas == n
		}
	}
	harness.Wait(h, "web", "three pods", has(3))
	first := harness.List[*corev1.Pod](h)[0].Name
	harness.Delete[*corev1.Pod](h, first)
	harness.WaitAll(h, "its successor", func(all []*corev1.Pod) bool { return len(all) == 3 && all[0].Name != first && all[2].Name != first })
	// One that is relabelled is let go and replaced; one that matches is taken in.
	second := harness.List[*corev1.Pod](h)[0].Name
	harness.Change(h, second, func(p *corev1.Pod) { p.Labels["app"] = "debug" })
	harness.WaitAll(h, "a fourth pod", func(all []*corev1.Pod) bool { return len(all) == 4 })
	harness.Wait(h, second, "its release", func(p *corev1.Pod) bool { return len(p.OwnerReferences) == 0 })
	harness.Wait(h, "web", "three pods again", has(3))
	harness.Change(h, second, func(p *corev1.Pod) { p.Labels["app"] = "web" })
	harness.WaitAll(h, "one pod too many to go", func(all []*corev1.Pod) bool { return len(all) == 3 })
	harness.Change(h, "web", func(rs *appsv1.ReplicaSet) { *rs.Spec.Replicas = 1 })
	harness.Wait(h, "web", "one pod", has(1))
	for _, e := range []string{"Normal SuccessfulCreate Created pod: web-", "Normal SuccessfulDelete Deleted pod: web-"} {
		if !h.Events.Has(e) {
			t.Errorf("no event %q in\n%s", e, h.Events)
		}
	}
}

func TestFailureShowsAndGoes(t *testing.T) {
	h := start(t)
	one := int32(1)
	template := harness.Template("web")
	template.Labels = map[string]string{"app": "web"}
	harness.Create(h, &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web"},
		Spec: corev1.ReplicationControllerSpec{Replicas: &one, Selector: template.Labels, Template: &template}})
	harness.Wait(h, "web", "one pod", func(rc *corev1.ReplicationController) bool {
		return rc.Status.ReadyReplicas == 1 && len(rc.Status.Conditions) == 0
	})
	s := &appsv1.ReplicaSetStatus{}
	setFailure(s, failureOf(Plan{Create: 1}, fmt.Errorf("quota")), metav1.Now())
	was := s.Conditions[0]
	setFailure(s, failureOf(Plan{Create: 1}, fmt.Errorf("quota")), metav1.NewTime(time.Now().Add(time.Hour)))
	if len(s.Conditions) != 1 || s.Conditions[0] != was || was.Reason != "FailedCreate" || was.Message != "quota" {
		t.Errorf("conditions %+v, before %+v", s.Conditions, was)
	}
	if setFailure(s, nil, metav1.Now()); len(s.Conditions) != 0 {
		t.Errorf("conditions %+v after success", s.Conditions)
	}
}
