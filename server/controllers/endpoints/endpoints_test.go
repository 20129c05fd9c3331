package endpoints

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/harness"
)

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web", UID: "svc", Labels: map[string]string{"l": "v"}},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}}}
	for _, c := range change {
		c(s)
	}
	return s
}

func pod(name, ip string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c"}}}, Status: *harness.Running()}
	if ip != "" {
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func unready(p *corev1.Pod) { p.Status.Conditions = harness.Unready().Conditions }
func going(p *corev1.Pod)   { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }

func zone(string) string { return "here" }

// shape tells what slices say, in a line each.
func shape(all []*discoveryv1.EndpointSlice) (out []string) {
	for _, s := range all {
		line := string(s.AddressType)
		for _, p := range s.Ports {
			line += fmt.Sprintf(" %s:%d", *p.Name, *p.Port)
		}
		for _, e := range s.Endpoints {
			line += fmt.Sprintf(" %s", e.Addresses[0])
			for _, c := range []struct {
				name string
				is   *bool
			}{{"r", e.Conditions.Ready}, {"s", e.Conditions.Serving}, {"t", e.Conditions.Terminating}} {
				if c.is != nil && *c.is {
					line += c.name
				}
			}
		}
		out = append(out, line)
	}
	return out
}

func TestReconcile(t *testing.T) {
	named := func(number int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: number, Protocol: corev1.ProtocolTCP}}
		}
	}
	for _, c := range []struct {
		name    string
		service *corev1.Service
		pods    []*corev1.Pod
		want    string
	}{
		{"none", service(), nil, "[IPv4]"},
		{"ready, not ready, going", service(), []*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.2", unready), pod("c", "10.0.0.3", going)},
			"[IPv4 http:8080 10.0.0.1rs 10.0.0.2 10.0.0.3st]"},
		{"published unready", service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }), []*corev1.Pod{pod("b", "10.0.0.2", unready)}, "[IPv4 http:8080 10.0.0.2r]"},
		{"no address, and ended", service(), []*corev1.Pod{pod("a", ""), pod("b", "10.0.0.2", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, "[IPv4]"},
		{"named ports differ", service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") }),
			[]*corev1.Pod{pod("a", "10.0.0.1", named(1)), pod("b", "10.0.0.2", named(2))}, "[IPv4 http:1 10.0.0.1rs IPv4 http:2 10.0.0.2rs]"},
		{"the other family", service(func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }),
			[]*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "fd00::1")}, "[IPv6 http:8080 fd00::1rs]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan := Reconcile(c.service, c.pods, zone, nil)
			if got := fmt.Sprint(shape(plan.Create)); got != c.want || len(plan.Update)+len(plan.Delete) > 0 {
				t.Errorf("%s, want %s", got, c.want)
			}
			for i, s := range plan.Create {
				s.Name = fmt.Sprint("web-", i)
			}
			again := Reconcile(c.service, c.pods, zone, plan.Create)
			if len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
				t.Errorf("a second look plans %+v", again)
			}
		})
	}
}

func TestReconcileTouchesFewSlices(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 250 {
		pods = append(pods, pod(fmt.Sprintf("p%03d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)))
	}
	plan := Reconcile(service(), pods, zone, nil)
	if len(plan.Create) != 3 {
		t.Fatalf("%d slices for 250 pods", len(plan.Create))
	}
	for i, s := range plan.Create {
		s.Name = fmt.Sprint("web-", i)
	}
	changed := append(append([]*corev1.Pod{}, pods[:120]...), pods[121:]...) // one of the second slice has gone
	again := Reconcile(service(), changed, zone, plan.Create)
	if len(again.Create)+len(again.Delete) > 0 || len(again.Update) != 1 || again.Update[0].Name != "web-1" {
		t.Errorf("one pod less: create %d, update %d, delete %d", len(again.Create), len(again.Update), len(again.Delete))
	}
}

func TestEndpointsAndSlicesFollowPods(t *testing.T) {
	h := harness.New(t)
	h.AddNode("node", func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = "z1" })
	h.Run(Slices(h.Registry), Endpoints(h.Registry), Mirroring(h.Registry, h.Events))
	harness.Create(h, service(func(s *corev1.Service) { s.UID = "" }))
	harness.WaitAll(h, "an empty slice", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 1 && len(all[0].Endpoints) == 0 })
	template := harness.Template("web")
	template.Spec.NodeName = "node"
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "p", Labels: template.Labels}, Spec: template.Spec})
	harness.ChangeStatus(h, "p", func(p *corev1.Pod) {
		p.Status = *harness.Running()
		p.Status.PodIP, p.Status.PodIPs = "10.0.0.9", []corev1.PodIP{{IP: "10.0.0.9"}}
	})
	slice := harness.WaitAll(h, "its endpoint", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 1 && len(all[0].Endpoints) == 1 })[0]
	if e := slice.Endpoints[0]; *e.Zone != "z1" || *e.NodeName != "node" || e.TargetRef.Name != "p" || slice.Labels["l"] != "v" {
		t.Errorf("endpoint %+v, labels %v", e, slice.Labels)
	}
	e := harness.Wait(h, "web", "the old form", func(e *corev1.Endpoints) bool { return len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 1 })
	if a := e.Subsets[0]; a.Addresses[0].IP != "10.0.0.9" || a.Ports[0].Port != 8080 {
		t.Errorf("subset %+v", a)
	}
	harness.ChangeStatus(h, "p", func(p *corev1.Pod) { p.Status.Conditions = harness.Unready().Conditions })
	harness.Wait(h, "web", "it to be not ready", func(e *corev1.Endpoints) bool { return len(e.Subsets) == 1 && len(e.Subsets[0].NotReadyAddresses) == 1 })
	harness.Delete[*corev1.Service](h, "web")
	harness.WaitAll(h, "no slices", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 0 })
	harness.WaitAll(h, "no endpoints", func(all []*corev1.Endpoints) bool { return len(all) == 0 })
}

func TestMirroring(t *testing.T) {
	h := harness.New(t)
	h.Run(Slices(h.Registry), Endpoints(h.Registry), Mirroring(h.Registry, h.Events))
	harness.Create(h, service(func(s *corev1.Service) { s.UID, s.Spec.Selector = "", nil }))
	harness.Create(h, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web", Labels: map[string]string{"mine": "yes"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses:         []corev1.EndpointAddress{{IP: "192.0.2.1", Hostname: "h"}, {IP: "2001:db8::1"}},
			NotReadyAddresses: []corev1.EndpointAddress{{IP: "192.0.2.2"}},
			Ports:             []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		}}})
	all := harness.WaitAll(h, "two mirrors", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 2 })
	if all[0].AddressType == discoveryv1.AddressTypeIPv6 {
		all[0], all[1] = all[1], all[0]
	}
	if got := fmt.Sprint(shape(all)); got != "[IPv4 http:80 192.0.2.1r 192.0.2.2 IPv6 http:80 2001:db8::1r]" {
		t.Errorf("mirrors %s", got)
	}
	if all[0].Labels["mine"] != "yes" || all[0].Labels[discoveryv1.LabelManagedBy] != mirroredBy || *all[0].Endpoints[0].Hostname != "h" {
		t.Errorf("mirror %+v", all[0])
	}
	name := all[0].Name
	harness.Change(h, "web", func(e *corev1.Endpoints) { e.Subsets[0].NotReadyAddresses = nil })
	harness.Wait(h, name, "one address less in the same slice", func(s *discoveryv1.EndpointSlice) bool { return len(s.Endpoints) == 1 })
	plan, invalid, _ := Mirror(harness.Get[*corev1.Endpoints](h, "web"), harness.List[*discoveryv1.EndpointSlice](h))
	if invalid != 0 || len(plan.Create)+len(plan.Update)+len(plan.Delete) > 0 {
		t.Errorf("a second look plans %+v", plan)
	}
	harness.Change(h, "web", func(e *corev1.Endpoints) { e.Labels[discoveryv1.LabelSkipMirror] = "true" })
	harness.WaitAll(h, "no mirrors", func(all []*discoveryv1.EndpointSlice) bool { return len(all) == 0 })
}
