package endpoints

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/fanout"
	"orch/server/controllers/harness"
	"orch/server/controllers/loop"
)

// Only what brings traffic to further pods may wait for company.
func TestOnlyAdds(t *testing.T) {
	renamed := func(p *corev1.Pod) { p.Spec.NodeName = "other" }
	two := []*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.2", unready)}
	for _, c := range []struct {
		name string
		pods []*corev1.Pod
		want bool
	}{
		{"one more", append([]*corev1.Pod{pod("c", "10.0.0.3")}, two...), true},
		{"one more that is ready", []*corev1.Pod{two[0], pod("b", "10.0.0.2")}, true},
		{"one less", two[:1], false},
		{"another in its place", []*corev1.Pod{two[0], pod("c", "10.0.0.3")}, false},
		{"one less that is ready", []*corev1.Pod{pod("a", "10.0.0.1", unready), two[1]}, false},
		{"one goes, one comes", append([]*corev1.Pod{pod("c", "10.0.0.3"), pod("a", "10.0.0.1", going)}, two[1]), false},
		{"one moves", []*corev1.Pod{pod("a", "10.0.0.1", renamed), two[1]}, false},
	} {
		existing := Reconcile(service(), two, zone, nil).Create
		existing[0].Name = "web-0"
		plan := Reconcile(service(), c.pods, zone, existing)
		if got := plan.onlyAdds(existing); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	existing := Reconcile(service(), two, zone, nil).Create
	existing[0].Name = "web-0"
	existing[0].Endpoints[1].Conditions = discoveryv1.EndpointConditions{} // by somebody else's hand
	if plan := Reconcile(service(), two, zone, existing); len(plan.Update) != 1 || plan.onlyAdds(existing) {
		t.Errorf("a repair waits: %+v", plan.Update)
	}
	relabelled := Reconcile(service(func(s *corev1.Service) { s.Labels["l"] = "w" }), two, zone, existing)
	if len(relabelled.Update) != 1 || relabelled.onlyAdds(existing) {
		t.Errorf("new labels wait: %+v", relabelled)
	}
}

func TestPace(t *testing.T) {
	h := harness.New(t)
	p, now := newPace(h.Registry), time.Now()
	one, other := loop.Key{Namespace: "ns", Name: "one"}, loop.Key{Namespace: "ns", Name: "other"}
	if wait := p.hold(one, now, true, true); wait > 0 {
		t.Errorf("the first waits %v", wait)
	}
	least := fanout.Rest(1)
	if wait := p.hold(one, now.Add(least/4), true, true); wait != least*3/4 {
		t.Errorf("the second waits %v", wait)
	}
	if wait := p.hold(other, now, true, false); wait > 0 {
		t.Errorf("another service waits %v", wait)
	}
	if wait := p.hold(one, now.Add(least), true, true); wait > 0 {
		t.Errorf("the third waits %v", wait)
	}
	if wait := p.hold(one, now.Add(least), false, true); wait > 0 {
		t.Errorf("what takes away waits %v", wait)
	}
	p.forget(one)
	if len(p.gained) > 0 {
		t.Error("a service that is gone is remembered")
	}
}

// Endpoints that waited for company are not forgotten.
func TestEndpointsComeTogether(t *testing.T) {
	const count = 20
	h := harness.New(t)
	h.AddNode("node", func(*corev1.Node) {})
	h.Run(Slices(h.Registry), Endpoints(h.Registry))
	harness.Create(h, service(func(s *corev1.Service) { s.UID = "" }))
	template := harness.Template("web")
	template.Spec.NodeName = "node"
	for i := range count {
		name := fmt.Sprint("p", i)
		harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, Labels: template.Labels}, Spec: template.Spec})
		harness.ChangeStatus(h, name, func(p *corev1.Pod) {
			p.Status = *harness.Running()
			p.Status.PodIP = fmt.Sprint("10.0.0.", i+1)
			p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		})
	}
	harness.WaitAll(h, "all endpoints", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 1 && len(all[0].Endpoints) == count })
	harness.Wait(h, "web", "all addresses", func(e *corev1.Endpoints) bool {
		return len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == count
	})
}
