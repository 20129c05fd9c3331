package auth

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func claimed(name, address string, ready corev1.ConditionStatus, kind corev1.NodeAddressType) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: kind, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
	}}
}

func testClaims() Claims {
	return Claims{
		Pods: netip.MustParsePrefix("10.42.0.0/16"), Services: netip.MustParsePrefix("10.43.0.0/16"), Domain: "cluster.local",
		Nodes: func() []*corev1.Node {
			return []*corev1.Node{
				claimed("ready", "192.0.2.11", corev1.ConditionTrue, corev1.NodeInternalIP),
				claimed("lost", "192.0.2.12", corev1.ConditionUnknown, corev1.NodeInternalIP),
				claimed("behind", "198.51.100.1", corev1.ConditionTrue, corev1.NodeExternalIP),
			}
		},
		Servers: func(context.Context) (map[netip.Addr]string, error) {
			return map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "server-1"}, nil
		},
	}
}

func TestClaimAddress(t *testing.T) {
	c := testClaims()
	for _, test := range []struct{ node, kind, address, refusal string }{
		{"n", "InternalIP", "192.0.2.20", ""},
		{"n", "InternalIP", "192.0.2.11", `is the address of node "ready"`},
		{"ready", "InternalIP", "192.0.2.11", ""},
		{"n", "InternalIP", "192.0.2.12", ""}, // installed anew under another name
		{"n", "ExternalIP", "192.0.2.11", `is the address of node "ready"`},
		{"n", "ExternalIP", "198.51.100.1", ""}, // one router, many nodes
		{"n", "InternalIP", "198.51.100.1", `is the address of node "behind"`},
		{"n", "InternalIP", "192.0.2.1", `is the address of server "server-1"`},
		{"server-1", "InternalIP", "192.0.2.1", ""},
		{"n", "InternalIP", "::ffff:192.0.2.1", `is the address of server "server-1"`},
		{"n", "InternalIP", "10.43.0.1", "is an address of services"},
		{"n", "InternalIP", "10.42.3.1", "is an address of pods"},
		{"n", "InternalIP", "127.0.0.1", "no address by which others"},
		{"n", "InternalIP", "fe80::1", "no address by which others"},
		{"n", "InternalIP", "ff02::1", "no address by which others"},
		{"n", "InternalIP", "2001:db8::1", ""},
	} {
		err := c.Address(t.Context(), test.node, corev1.NodeAddressType(test.kind), netip.MustParseAddr(test.address))
		if (err == nil) != (test.refusal == "") || err != nil && !strings.Contains(err.Error(), test.refusal) {
			t.Errorf("%s %s of %s: %v, want %q", test.kind, test.address, test.node, err, test.refusal)
		}
	}
}

func TestClaimName(t *testing.T) {
	c := testClaims()
	for _, test := range []struct{ name, from, refusal string }{
		{"worker-1", "192.0.2.20", ""},
		{"kubernetes.example.com", "192.0.2.20", ""},
		{"kubernetes", "192.0.2.20", "stands for the API or a service"},
		{"KUBERNETES.default", "192.0.2.20", "stands for the API or a service"},
		{"web.shop.svc", "192.0.2.20", "stands for the API or a service"},
		{"x.cluster.local", "192.0.2.20", "stands for the API or a service"},
		{"server-1", "192.0.2.20", "belongs to a server"},
		{"server-1", "192.0.2.1", ""},
		{"server-1", "127.0.0.1", ""},
		{"192.0.2.1", "192.0.2.20", "is the address of server"},
		{"192.0.2.20", "192.0.2.20", ""},
	} {
		err := c.Name(t.Context(), test.name, netip.MustParseAddr(test.from))
		if (err == nil) != (test.refusal == "") || err != nil && !strings.Contains(err.Error(), test.refusal) {
			t.Errorf("%s from %s: %v, want %q", test.name, test.from, err, test.refusal)
		}
	}
}

// Addresses that a node has had are not asked about again: what another one
// claims meanwhile must not keep it from reporting.
func TestClaimNodeAddresses(t *testing.T) {
	c := testClaims()
	n := claimed("n", "192.0.2.11", corev1.ConditionTrue, corev1.NodeInternalIP)
	if err := c.NodeAddresses(t.Context(), n, n); err != nil {
		t.Error(err)
	}
	if err := c.NodeAddresses(t.Context(), n, nil); err == nil {
		t.Error("a new claim to another's address")
	}
	for address, ok := range map[string]bool{"n": true, "n.example.com": true, "n.default.svc.cluster.local": false, "ready": false, "kubernetes": false} {
		named := claimed("n", address, corev1.ConditionTrue, corev1.NodeHostName)
		if err := c.NodeAddresses(t.Context(), named, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
