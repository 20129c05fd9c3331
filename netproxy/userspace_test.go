package netproxy

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/netproxy/wire"
)

// TestServicesUserspace has neither iptables nor nft in its PATH: services are
// reached all the same.
func TestServicesUserspace(t *testing.T) {
	if !isolated(t) {
		return
	}
	t.Setenv("PATH", t.TempDir())
	n := newNode(t, nil)
	defer func() { n.stop() }()
	a, b, client := n.addPod("pod-a"), n.addPod("pod-b"), n.addPod("client")
	a.serve(8080)
	b.serve(8080)
	self := here(t)
	n.service("one", "10.43.0.100", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30080
		s.Spec.ExternalIPs = []string{"203.0.113.7"}
	}, a)

	t.Run("every way in", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			n.expect(client.ns, network, "10.43.0.100:80", "pod-a", anyone)
			n.expect(self, network, "10.43.0.100:80", "pod-a", anyone)
			n.expect(a.ns, network, "10.43.0.100:80", "pod-a", anyone) // hairpin
			n.expect(n.outside, network, nodeIP.String()+":30080", "pod-a", anyone)
			n.expect(client.ns, network, nodeIP.String()+":30080", "pod-a", anyone)
			n.expect(self, network, "127.0.0.1:30080", "pod-a", anyone)
			n.expect(client.ns, network, "203.0.113.7:80", "pod-a", anyone)
		}
	})
	t.Run("balances", func(t *testing.T) {
		n.setEndpoints("one", a, b)
		counts := make(map[string]int)
		for range 10 {
			name, _, err := n.ask(client.ns, "tcp", "10.43.0.100:80")
			must(t, err)
			counts[name]++
		}
		if counts["pod-a"] != 5 || counts["pod-b"] != 5 {
			t.Errorf("answers by pod: %v", counts)
		}
	})
	t.Run("affinity", func(t *testing.T) { n.stick(client, a, b) })
	t.Run("without endpoints", func(t *testing.T) {
		n.service("empty", "10.43.0.102", nil)
		for _, ns := range []netns.NsHandle{client.ns, self} {
			if _, _, err := n.ask(ns, "tcp", "10.43.0.102:80"); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("not refused: %v", err)
			}
		}
	})
	t.Run("udp endpoint replaced", func(t *testing.T) { n.replaceEndpoint(client, a, b) })
	t.Run("external traffic policy Local", func(t *testing.T) {
		n.service("local", "10.43.0.103", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.Ports[0].NodePort = 30083
			s.Spec.HealthCheckNodePort = 30084
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}, a)
		n.expect(n.outside, "tcp", nodeIP.String()+":30083", "pod-a", anyone)
		n.expectHealth(30084, http.StatusOK)
	})
	t.Run("host port", func(t *testing.T) {
		web := n.addPod("web", wire.PortMapping{HostPort: 8000, ContainerPort: 8080, Protocol: "TCP"})
		web.serve(8080)
		n.expect(n.outside, "tcp", nodeIP.String()+":8000", "web", anyone)
	})
	t.Run("deleted", func(t *testing.T) {
		must(t, n.client.CoreV1().Services("default").Delete(context.Background(), "one", metav1.DeleteOptions{}))
		n.settle()
		if _, _, err := n.ask(client.ns, "tcp", "10.43.0.100:80"); err == nil {
			t.Error("the service still answers")
		}
		if out, err := netlink.AddrList(nil, netlink.FAMILY_V4); err != nil || strings.Contains(fmt.Sprint(out), "10.43.0.100/32") || !strings.Contains(fmt.Sprint(out), "10.43.0.101/32") {
			t.Errorf("the node's addresses: %v, %v", out, err)
		}
	})
	t.Run("nothing stays behind", func(t *testing.T) {
		n.stop()
		n.stop = func() {}
		if _, _, err := n.ask(client.ns, "tcp", "10.43.0.101:80"); err == nil {
			t.Error("somebody answers")
		}
		if value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + a.link(t) + "/route_localnet"); err != nil || strings.TrimSpace(string(value)) != "0" {
			t.Errorf("a pod could reach the node's loopback: route_localnet is %q, %v", value, err)
		}
		must(t, Cleanup(context.Background(), "orch0"))
	})
}

// link is the node's end of the pod's link.
func (p *pod) link(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteGet(p.ip.AsSlice())
	must(t, err)
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return link.Attrs().Name
}
