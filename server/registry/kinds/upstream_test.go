package kinds

import (
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// TestUpstreamAnswers holds what a real upstream 1.36 server, and 1.37.2 again, was seen to answer
// where this one once differed.
func TestUpstreamAnswers(t *testing.T) {
	metric := func(apiVersion string) *autoscalingv2.HorizontalPodAutoscaler {
		h := &autoscalingv2.HorizontalPodAutoscaler{Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: apiVersion, Kind: "Deployment", Name: "d"}, MaxReplicas: 1,
			Metrics: []autoscalingv2.MetricSpec{{Type: "Object", Object: &autoscalingv2.ObjectMetricSource{
				DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "Service", Name: "s"},
				Metric:          autoscalingv2.MetricIdentifier{Name: "m"}, Target: autoscalingv2.MetricTarget{Type: "Value", Value: ptr(amounts("v", "1")["v"])},
			}}},
		}}
		return h
	}
	userNamespace := testPod(func(p *corev1.Pod) {
		p.Spec.HostUsers = ptr(false)
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "x", VolumeDevices: []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/v"}}}}
	})
	for name, c := range map[string]struct {
		got  field.ErrorList
		want string // "": nothing
	}{
		"metric of a core kind":    {validateHPA(metric("apps/v1")), ""},
		"target without group":     {validateHPA(metric("v1")), "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group"},
		"devices, user namespaces": {validatePod(userNamespace), "spec.initContainers[0].volumeDevices: Forbidden: when `hostUsers` is false"},
		"exempt level": {validatePriorityLevel(&flowcontrolv1.PriorityLevelConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: "Exempt"},
		}), "spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'"},
		"mirror without node": {validatePod(testPod(func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} })),
			"metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set"},
		"approval without status": {validateCSRApproval(&certificatesv1.CertificateSigningRequest{Status: certificatesv1.CertificateSigningRequestStatus{
			Conditions: []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved}},
		}}, &certificatesv1.CertificateSigningRequest{}), "status.conditions[0].status: Required value"},
		"level without type": {validatePriorityLevel(&flowcontrolv1.PriorityLevelConfiguration{}), "spec.type: Required value"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == "" && len(c.got) == 0 {
				return
			}
			for _, e := range c.got {
				if e.Error() == c.want {
					return
				}
			}
			t.Errorf("got %v, want %q", c.got, c.want)
		})
	}
}

// TestFieldSelectors: kinds without fields of their own take both general
// ones, also those that are in no namespace; replica sets have no others.
func TestFieldSelectors(t *testing.T) {
	f := newFixture(t)
	list := func(group, plural, selector string) error {
		sel, err := fields.ParseSelector(selector)
		if err != nil {
			t.Fatal(err)
		}
		page, err := f.List(f.ctx, f.Lookup(group, "v1", plural), registry.Selection{Fields: sel}, &metav1.ListOptions{})
		if err == nil && len(page.Items) > 0 {
			t.Errorf("%s by %s: %d items", plural, selector, len(page.Items))
		}
		return err
	}
	put(f, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "r"}})
	if err := list("rbac.authorization.k8s.io", "clusterroles", "metadata.namespace=x"); err != nil {
		t.Error(err)
	}
	want := `"status.replicas" is not a known field selector: only "metadata.name", "metadata.namespace"`
	if err := list("apps", "replicasets", "status.replicas=0"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestApprovalNeedsStatus: the status of a condition is not made up.
func TestApprovalNeedsStatus(t *testing.T) {
	old := &certificatesv1.CertificateSigningRequest{}
	c := old.DeepCopy()
	c.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved}}
	stampConditions(c, old, metav1.Time{Time: testTime})
	if c.Status.Conditions[0].Status != "" || !c.Status.Conditions[0].LastUpdateTime.Equal(ptr(metav1.Time{Time: testTime})) {
		t.Errorf("got %+v", c.Status.Conditions[0])
	}
}

// TestTopologyIsDropped: endpointslices of v1 keep no deprecatedTopology.
func TestTopologyIsDropped(t *testing.T) {
	f := newFixture(t)
	slice := func() *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, DeprecatedTopology: map[string]string{"a": "b"}}}}
	}
	if made := put(f, slice()); made.Endpoints[0].DeprecatedTopology != nil {
		t.Errorf("created with %v", made.Endpoints[0].DeprecatedTopology)
	}
	changed, err := registry.Of[*discoveryv1.EndpointSlice](f.Registry).Mutate(f.ctx, "default", "e", func(s *discoveryv1.EndpointSlice) error {
		s.Endpoints = slice().Endpoints
		return nil
	})
	if err != nil || changed.Endpoints[0].DeprecatedTopology != nil {
		t.Errorf("changed: %v, %+v", err, changed)
	}
}
