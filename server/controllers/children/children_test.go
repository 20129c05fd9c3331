package children_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/children"
	"orch/server/controllers/harness"
	"orch/server/registry"
)

var now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	for _, c := range change {
		c(p)
	}
	return p
}

func ready(ago time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-ago))}}
	}
}

func TestSortForDeletion(t *testing.T) {
	on := func(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
	cost := func(n string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: n} }
	}
	restarts := func(n int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}} }
	}
	age := func(d time.Duration) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-d)) }
	}
	pods := []*corev1.Pod{ // in the order in which they go
		pod("unassigned", on("")),
		pod("pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("unknown", func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown }),
		pod("restarting", restarts(5)),
		pod("young", age(time.Minute)),
		pod("not ready"),
		pod("cheap", ready(time.Hour), cost("-1")),
		pod("crowded", ready(time.Hour), on("n2")),
		pod("lately ready", ready(time.Minute), on("n3")),
		pod("a while ready", ready(time.Hour), on("n3")),
		pod("dear", ready(time.Minute), cost("7")),
	}
	related := append([]*corev1.Pod{pod("x", on("n2")), pod("y", on("n2")), pod("z", on("n2"))}, pods...)
	var want []string
	for _, p := range pods {
		want = append(want, p.Name)
	}
	for i := range pods { // from any order
		shuffled := append(append([]*corev1.Pod{}, pods[i:]...), pods[:i]...)
		children.SortForDeletion(shuffled, related, now)
		var got []string
		for _, p := range shuffled {
			got = append(got, p.Name)
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Fatalf("order\n%v, want\n%v", got, want)
		}
	}
}

func TestClaim(t *testing.T) {
	owner := children.Owner{
		Object: &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "rs", UID: "me"}}, Kind: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		Selector: labels.SelectorFromSet(labels.Set{"app": "web"}),
	}
	of := func(uid types.UID) func(*corev1.Pod) {
		yes := true
		return func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{{UID: uid, Controller: &yes}} }
	}
	web := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} }
	going := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }
	c := children.ClaimAll(owner, []*corev1.Pod{
		pod("mine", of("me"), web), pod("strayed", of("me")), pod("other's", of("you"), web), pod("orphan", web),
		pod("going orphan", web, going), pod("stranger"),
	})
	names := func(pods []*corev1.Pod) (out []string) {
		for _, p := range pods {
			out = append(out, p.Name)
		}
		return out
	}
	if got := fmt.Sprint(names(c.Mine), names(c.Adopt), names(c.Release)); got != "[mine] [orphan] [strayed]" {
		t.Errorf("claims %s", got)
	}
	owner.Object.SetDeletionTimestamp(&metav1.Time{Time: now})
	if c := children.ClaimAll(owner, []*corev1.Pod{pod("orphan", web), pod("strayed", of("me"))}); len(c.Adopt)+len(c.Release) > 0 {
		t.Errorf("an owner that is being deleted adopts %v and releases %v", names(c.Adopt), names(c.Release))
	}
}

func TestAvailable(t *testing.T) {
	for _, c := range []struct {
		pod  *corev1.Pod
		min  int32
		want bool
		wait time.Duration
	}{
		{pod("not ready"), 0, false, 0},
		{pod("ready", ready(0)), 0, true, 0},
		{pod("not long enough", ready(4*time.Second)), 10, false, 6 * time.Second},
		{pod("long enough", ready(10*time.Second)), 10, true, 0},
	} {
		if ok, wait := children.Available(c.pod, c.min, now); ok != c.want || wait != c.wait {
			t.Errorf("%s: %v, wait %s", c.pod.Name, ok, wait)
		}
	}
}

func TestCreateManyStopsEarly(t *testing.T) {
	for _, c := range []struct{ n, failFrom, tried, done int }{{10, 100, 10, 10}, {10, 0, 1, 0}, {100, 5, 7, 5}} {
		tried := make(chan int, 200)
		done, err := children.CreateMany(context.Background(), c.n, func(_ context.Context, i int) error {
			tried <- i
			if i >= c.failFrom {
				return errors.New("quota")
			}
			return nil
		})
		if len(tried) != c.tried || done != c.done || (err != nil) != (c.failFrom < c.n) {
			t.Errorf("%d, failing from %d: tried %d, done %d, %v", c.n, c.failFrom, len(tried), done, err)
		}
	}
}

// TestIndexIsNeverBehind looks right after each write.
func TestIndexIsNeverBehind(t *testing.T) {
	h := harness.New(t)
	h.AddNode("node")
	template := harness.Template("web")
	yes := true
	owned := harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "owned",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Thing", Name: "t", UID: "t", Controller: &yes}}}, Spec: template.Spec})
	orphan := harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "orphan"}, Spec: template.Spec})
	check := func(when, owner, orphans, node string) {
		t.Helper()
		names := func(pods []*corev1.Pod) string {
			var out []string
			for _, p := range pods {
				out = append(out, p.Name)
			}
			return strings.Join(out, " ")
		}
		if a, b, c := names(h.Pods.OfOwner("t")), names(h.Pods.Orphans(harness.Namespace)), names(h.Pods.OnNode("node")); a != owner || b != orphans || c != node {
			t.Errorf("%s: owned %q, orphans %q, on the node %q", when, a, b, c)
		}
	}
	check("at first", "owned", "orphan", "")
	harness.Change(h, "owned", func(p *corev1.Pod) { p.OwnerReferences = nil })
	check("released", "", "orphan owned", "")
	harness.Change(h, "orphan", func(p *corev1.Pod) { p.OwnerReferences = owned.OwnerReferences })
	check("adopted", "orphan", "owned", "")
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "bound"}, Spec: func() corev1.PodSpec {
		spec := *template.Spec.DeepCopy()
		spec.NodeName = "node"
		return spec
	}()})
	check("bound", "orphan", "bound owned", "bound")
	zero := int64(0)
	for _, name := range []string{orphan.Name, "bound"} {
		if err := registry.Of[*corev1.Pod](h.Registry).Delete(h.Context(), harness.Namespace, name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
	}
	check("deleted", "", "owned", "")
}

func TestRevisions(t *testing.T) {
	h := harness.New(t)
	revisions := children.Revisions{Typed: registry.Of[*appsv1.ControllerRevision](h.Registry)}
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "d", UID: "d"}}
	owner := children.Owner{Object: set, Kind: appsv1.SchemeGroupVersion.WithKind("DaemonSet"), Selector: labels.SelectorFromSet(labels.Set{"app": "web"})}
	settle := func(image string) children.History {
		t.Helper()
		template := harness.Template("web")
		template.Spec.Containers[0].Image = image
		history, err := revisions.Settle(h.Context(), owner, children.Template{Spec: &template, HashLabel: "hash"})
		if err != nil {
			t.Fatal(err)
		}
		return history
	}
	first := settle("one")
	if again := settle("one"); again.Current.Name != first.Current.Name || again.Current.Revision != 1 || len(again.Old) != 0 {
		t.Errorf("the same template again: %s %d", again.Current.Name, again.Current.Revision)
	}
	if second := settle("two"); second.Current.Revision != 2 || len(second.Old) != 1 {
		t.Errorf("another template: revision %d, %d old", second.Current.Revision, len(second.Old))
	}
	back := settle("one")
	if back.Current.Name != first.Current.Name || back.Current.Revision != 3 {
		t.Errorf("back to the first: %s %d", back.Current.Name, back.Current.Revision)
	}
	template, err := children.TemplateOf(back.Current)
	if err != nil || template.Spec.Containers[0].Image != "one" {
		t.Errorf("it keeps %v, %v", template, err)
	}
	none := int32(0)
	if err := revisions.Truncate(h.Context(), back.Old, &none, func(*appsv1.ControllerRevision) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left := harness.List[*appsv1.ControllerRevision](h); len(left) != 1 {
		t.Errorf("%d revisions left", len(left))
	}
}
