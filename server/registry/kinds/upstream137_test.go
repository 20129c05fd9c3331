package kinds

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/registry"
)

// eventV1 is one that events.k8s.io/v1 takes, and what change makes of it.
func eventV1(change func(*eventsv1.Event)) *eventsv1.Event {
	e := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, EventTime: metav1.NewMicroTime(testTime),
		ReportingController: "a.b/c", ReportingInstance: "i", Action: "A", Reason: "R", Type: "Normal", Note: "n",
		Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "x"},
	}
	if change != nil {
		change(e)
	}
	return e
}

// TestEventsV1Create holds the refusals of kube-apiserver 1.37.2.
func TestEventsV1Create(t *testing.T) {
	f := newFixture(t)
	res := f.Lookup("events.k8s.io", "v1", "events")
	for _, c := range []struct {
		change func(*eventsv1.Event)
		want   string
	}{
		{func(e *eventsv1.Event) { e.EventTime = metav1.MicroTime{} }, `eventTime: Required value`},
		{func(e *eventsv1.Event) { e.Type = "Odd" }, `type: Invalid value: "": has invalid value: Odd`},
		{func(e *eventsv1.Event) {
			e.Series = &eventsv1.EventSeries{Count: 1, LastObservedTime: metav1.NewMicroTime(testTime)}
		},
			`series.count: Invalid value: "": should be at least 2`},
		{func(e *eventsv1.Event) { e.Series = &eventsv1.EventSeries{Count: 2} }, `series.lastObservedTime: Required value`},
		{func(e *eventsv1.Event) { e.DeprecatedCount = 1 }, `count: Invalid value: "": needs to be unset`},
		{func(e *eventsv1.Event) { e.DeprecatedSource.Host = "h" }, `source: Invalid value: "": needs to be unset`},
		{func(e *eventsv1.Event) { e.DeprecatedFirstTimestamp = metav1.NewTime(testTime) }, `firstTimestamp: Invalid value: "": needs to be unset`},
		{func(e *eventsv1.Event) { e.DeprecatedLastTimestamp = metav1.NewTime(testTime) }, `lastTimestamp: Invalid value: "": needs to be unset`},
		{func(e *eventsv1.Event) { e.ReportingController = "" }, `reportingController: Required value`},
	} {
		_, err := f.Create(f.ctx, res, "default", eventV1(c.change), nil)
		if got := causes(err); len(got) == 0 || got[0] != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if _, err := f.Create(f.ctx, res, "default", eventV1(nil), nil); err != nil {
		t.Error(err)
	}
}

// TestEventsV1Update: once written an event changes in its series alone, by the
// newer version; the older one leaves it open.
func TestEventsV1Update(t *testing.T) {
	f := newFixture(t)
	res := f.Lookup("events.k8s.io", "v1", "events")
	if _, err := f.Create(f.ctx, res, "default", eventV1(nil), nil); err != nil {
		t.Fatal(err)
	}
	patch := func(res *registry.Resource, body string) error {
		_, _, err := f.Patch(f.ctx, res, "", "default", "e", types.MergePatchType, []byte(body), &metav1.PatchOptions{})
		return err
	}
	for _, c := range []struct{ body, want string }{
		{`{"note":"other"}`, `message: Invalid value: "other": field is immutable`},
		{`{"reason":"other"}`, `reason: Invalid value: "other": field is immutable`},
		{`{"action":"other"}`, `action: Invalid value: "other": field is immutable`},
		{`{"type":"Warning"}`, `type: Invalid value: "Warning": field is immutable`},
		{`{"reportingController":"x/y"}`, `reportingController: Invalid value: "x/y": field is immutable`},
		{`{"series":{"count":1}}`, `series.count: Invalid value: "": should be at least 2`},
	} {
		if got := causes(patch(res, c.body)); len(got) == 0 || got[0] != c.want {
			t.Errorf("%s: got %q, want %q", c.body, got, c.want)
		}
	}
	if err := patch(res, `{"series":{"count":3,"lastObservedTime":"2030-01-01T00:00:00.000000Z"}}`); err != nil {
		t.Error(err)
	}
	if err := patch(res, `{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Error(err)
	}
	if err := patch(f.Lookup("", "v1", "events"), `{"message":"other"}`); err != nil {
		t.Errorf("by the old version: %v", err)
	}
}

// TestPodAddresses keeps podIP and podIPs in step, as upstream's defaults do.
func TestPodAddresses(t *testing.T) {
	ips := func(all ...string) (out []corev1.PodIP) {
		for _, ip := range all {
			out = append(out, corev1.PodIP{IP: ip})
		}
		return out
	}
	for _, c := range []struct{ status, want corev1.PodStatus }{
		{corev1.PodStatus{}, corev1.PodStatus{}},
		{corev1.PodStatus{PodIP: "1.1.1.1"}, corev1.PodStatus{PodIP: "1.1.1.1", PodIPs: ips("1.1.1.1")}},
		{corev1.PodStatus{PodIPs: ips("1.1.1.1", "fd::1")}, corev1.PodStatus{PodIP: "1.1.1.1", PodIPs: ips("1.1.1.1", "fd::1")}},
		{corev1.PodStatus{PodIP: "2.2.2.2", PodIPs: ips("1.1.1.1", "fd::1")}, corev1.PodStatus{PodIP: "2.2.2.2", PodIPs: ips("2.2.2.2")}},
		{corev1.PodStatus{PodIP: "1.1.1.1", PodIPs: ips("1.1.1.1", "fd::1")}, corev1.PodStatus{PodIP: "1.1.1.1", PodIPs: ips("1.1.1.1", "fd::1")}},
	} {
		got := c.status
		if defaultPodStatus(&got); !sameValue(got, c.want) {
			t.Errorf("%+v: got %+v", c.status, got)
		}
	}
}

// TestNegativeGracePeriod: a pod's becomes 1, a template keeps what it says.
func TestNegativeGracePeriod(t *testing.T) {
	p := testPod(func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr(int64(-5)) })
	if defaultPod(p); *p.Spec.TerminationGracePeriodSeconds != 1 {
		t.Errorf("pod: %d", *p.Spec.TerminationGracePeriodSeconds)
	}
	template := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: ptr(int64(-5))}}
	if defaultPodTemplate(template); *template.Spec.TerminationGracePeriodSeconds != -5 {
		t.Errorf("template: %d", *template.Spec.TerminationGracePeriodSeconds)
	}
}

// TestStopSignal: any that Linux has needs no operating system named.
func TestStopSignal(t *testing.T) {
	with := func(os *corev1.PodOS, signal corev1.Signal) *corev1.Pod {
		return testPod(func(p *corev1.Pod) {
			p.Spec.OS = os
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{StopSignal: &signal}
		})
	}
	linux, windows := &corev1.PodOS{Name: corev1.Linux}, &corev1.PodOS{Name: corev1.Windows}
	for _, c := range []struct {
		pod *corev1.Pod
		ok  bool
	}{
		{with(nil, corev1.SIGUSR1), true}, {with(linux, corev1.SIGUSR1), true}, {with(nil, "SIGODD"), false},
		{with(windows, corev1.SIGUSR1), false}, {with(windows, corev1.SIGTERM), true},
	} {
		defaultPod(c.pod)
		if errs := validatePod(c.pod); (len(errs) == 0) != c.ok {
			t.Errorf("%v %s: %v", c.pod.Spec.OS, *c.pod.Spec.Containers[0].Lifecycle.StopSignal, errs)
		}
	}
}

// TestStrictAddresses: forms of addresses that programs read differently are
// refused, unless they were there before (StrictIPCIDRValidation).
func TestStrictAddresses(t *testing.T) {
	f := newFixture(t)
	service := func(ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: ips}}
	}
	res := f.Lookup("", "v1", "services")
	for ip, want := range map[string]string{
		"010.1.2.3":      `spec.externalIPs[0]: Invalid value: "010.1.2.3": must not have leading 0s`,
		"::ffff:1.2.3.4": `spec.externalIPs[0]: Invalid value: "::ffff:1.2.3.4": must not be an IPv4-mapped IPv6 address`,
		"1.2.3":          `spec.externalIPs[0]: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
	} {
		_, err := f.Create(f.ctx, res, "default", service(ip), nil)
		if got := causes(err); len(got) != 1 || got[0] != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for cidr, want := range map[string]string{
		"010.0.0.0/8": "must not have leading 0s in IP or prefix length",
		"10.1.1.1/16": "must not have bits set beyond the prefix length",
	} {
		policy := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}}}},
		}}
		defaultNetworkPolicy(policy)
		if errs := validateNetworkPolicy(policy); len(errs) != 1 || errs[0].Detail != want {
			t.Errorf("%s: %v", cidr, errs)
		}
	}
	if got := serviceWarnings(service("2001:DB8::1")); len(got) != 2 || got[0] != `spec.externalIPs[0]: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")` {
		t.Errorf("warnings %q", got)
	}
}

// TestPodResourcesAfterAdmission: what a pod's own resources lack is filled in
// once admission has added its containers (PodLevelResourcesFixDefaulting).
func TestPodResourcesAfterAdmission(t *testing.T) {
	p := testPod(func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Limits: amounts("cpu", "4")}
		p.Spec.Containers[0].Resources.Requests = amounts("cpu", "1")
	})
	defaultPod(p)
	if p.Spec.Resources.Requests != nil {
		t.Errorf("before admission: %v", p.Spec.Resources.Requests)
	}
	injected := p.Spec.Containers[0]
	injected.Name = "injected"
	p.Spec.Containers = append(p.Spec.Containers, injected)
	if err := preparePodCreate(t.Context(), nil, p); err != nil {
		t.Fatal(err)
	}
	if got := p.Spec.Resources.Requests.Cpu().String(); got != "2" {
		t.Errorf("after admission: %s", got)
	}
}
