package kinds

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func testService(change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func TestServiceCreate(t *testing.T) {
	f := newFixture(t)
	put(f, func() *corev1.Service {
		s := testService(func(s *corev1.ServiceSpec) {
			s.Type, s.ClusterIP, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, "10.43.0.9", 30009
		})
		s.Name = "first"
		return s
	}())
	for _, test := range []struct {
		name   string
		change func(*corev1.ServiceSpec)
		want   string
	}{
		{"no ports", func(s *corev1.ServiceSpec) { s.Ports = nil }, "spec.ports: Required value"},
		{"address in use", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.43.0.9" },
			`spec.clusterIPs: Invalid value: ["10.43.0.9"]: failed to allocate IP 10.43.0.9: provided IP is already allocated`},
		{"address elsewhere", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.99.0.9" },
			`spec.clusterIPs: Invalid value: ["10.99.0.9"]: failed to allocate IP 10.99.0.9: the provided network does not match the current range`},
		{"port in use", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = "NodePort", 30009 },
			"spec.ports[0].nodePort: Invalid value: 30009: provided port is already allocated"},
		{"port out of range", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = "NodePort", 80 },
			"spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"node port of a cluster IP", func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 30010 },
			"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		{"external name", func(s *corev1.ServiceSpec) { s.Type = "ExternalName" }, "spec.externalName: Required value"},
		{"two families", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack) },
			`spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		{"unnamed ports", func(s *corev1.ServiceSpec) { s.Ports = append(s.Ports, corev1.ServicePort{Port: 81}) },
			"spec.ports[0].name: Required value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := registry.Of[*corev1.Service](f.Registry).Create(f.ctx, testService(test.change))
			refused(t, err, test.want)
		})
	}
}

// TestServiceLife follows what is allocated through the changes of type.
func TestServiceLife(t *testing.T) {
	f := newFixture(t)
	services := registry.Of[*corev1.Service](f.Registry)
	change := func(fn func(*corev1.ServiceSpec)) *corev1.Service {
		t.Helper()
		s, err := services.Mutate(f.ctx, "default", "web", func(s *corev1.Service) error { fn(&s.Spec); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := put(f, testService(nil))
	ip := s.Spec.ClusterIP
	if !strings.HasPrefix(ip, "10.43.0.") || s.Spec.ClusterIPs[0] != ip || !f.Claimed(ipClaim(ip)) {
		t.Fatalf("cluster IP %q, %q", ip, s.Spec.ClusterIPs)
	}
	s = change(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeNodePort })
	port := s.Spec.Ports[0].NodePort
	if port < 30000 || port > 32767 || !f.Claimed(portClaim(port)) {
		t.Fatalf("node port %d", port)
	}
	if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyCluster {
		t.Errorf("external traffic policy %q", s.Spec.ExternalTrafficPolicy)
	}
	s = change(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs, s.Ports[0].NodePort = "", nil, 0 })
	if s.Spec.ClusterIP != ip || s.Spec.Ports[0].NodePort != port {
		t.Errorf("left out, and lost: %s %d", s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
	}
	s = change(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP })
	if s.Spec.Ports[0].NodePort != 0 || f.Claimed(portClaim(port)) {
		t.Errorf("node port %d kept", s.Spec.Ports[0].NodePort)
	}
	_, err := services.Mutate(f.ctx, "default", "web", func(s *corev1.Service) error {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.0.1", []string{"10.43.0.1"}
		return nil
	})
	refused(t, err, `spec.clusterIPs[0]: Invalid value: ["10.43.0.1"]: may not change once set`)
	s = change(func(s *corev1.ServiceSpec) { s.Type, s.ExternalName = corev1.ServiceTypeExternalName, "example.com" })
	if s.Spec.ClusterIP != "" || f.Claimed(ipClaim(ip)) {
		t.Errorf("cluster IP %q kept", s.Spec.ClusterIP)
	}
}

func TestFreeIP(t *testing.T) {
	for _, test := range []struct {
		name, cidr string
		random     uint64
		taken      []string
		want       string
	}{
		{"upper band", "10.43.0.0/24", 0, nil, "10.43.0.17"},
		{"wraps", "10.43.0.0/24", 237, []string{"10.43.0.254"}, "10.43.0.17"},
		{"small", "10.43.0.0/30", 0, []string{"10.43.0.1"}, "10.43.0.2"},
		{"full", "10.43.0.0/30", 1, []string{"10.43.0.1", "10.43.0.2"}, ""},
		{"IPv6", "fd00::/112", 0, nil, "fd00::101"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, cidr, _ := net.ParseCIDR(test.cidr)
			a := serviceAddresses{cidr: cidr}
			taken := make(map[string]bool)
			for _, ip := range test.taken {
				taken[ipClaim(ip)] = true
			}
			if got := a.freeIP(func(c string) bool { return taken[c] }, test.random); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestProtocolsShare gives two protocols of one port the same node port.
func TestProtocolsShare(t *testing.T) {
	_, cidr, _ := net.ParseCIDR("10.43.0.0/24")
	a := serviceAddresses{cidr: cidr, nodePorts: [2]int{30000, 32767}}
	s := testService(func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.Ports = []corev1.ServicePort{{Name: "a", Port: 53, Protocol: "UDP"}, {Name: "b", Port: 53, Protocol: "TCP"}, {Name: "c", Port: 80}}
	})
	defaultService(s)
	if err := a.allocate(func(string) bool { return false }, s, nil); err != nil {
		t.Fatal(err)
	}
	p := s.Spec.Ports
	if p[0].NodePort == 0 || p[0].NodePort != p[1].NodePort || p[2].NodePort == p[0].NodePort {
		t.Errorf("node ports %d %d %d", p[0].NodePort, p[1].NodePort, p[2].NodePort)
	}
}
