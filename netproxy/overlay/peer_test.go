package overlay

import (
	"maps"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testNode(name, podCIDR string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDR}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func TestPeerOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		node *corev1.Node
		want Peer
		ok   bool
	}{
		{"whole", testNode("b", "10.42.1.0/24", "192.0.2.2"), Peer{netip.MustParseAddr("192.0.2.2"), netip.MustParsePrefix("10.42.1.0/24")}, true},
		{"the first IPv4 address counts", testNode("b", "10.42.1.0/24", "fd00::1", "192.0.2.2", "192.0.2.3"), Peer{netip.MustParseAddr("192.0.2.2"), netip.MustParsePrefix("10.42.1.0/24")}, true},
		{"no range yet", testNode("b", "", "192.0.2.2"), Peer{}, false},
		{"no address yet", testNode("b", "10.42.1.0/24"), Peer{}, false},
		{"IPv6 range", testNode("b", "fd00::/64", "192.0.2.2"), Peer{}, false},
	} {
		if got, ok := peerOf(tt.node); got != tt.want || ok != tt.ok {
			t.Errorf("%s: got %v, %v", tt.name, got, ok)
		}
	}
}

func TestDifference(t *testing.T) {
	set, remove := difference(map[string]int{"same": 1, "other": 1, "gone": 1}, map[string]int{"same": 1, "other": 2, "new": 3})
	if want := (map[string]int{"other": 2, "new": 3}); !maps.Equal(set, want) {
		t.Errorf("set %v", set)
	}
	if want := (map[string]int{"gone": 1}); !maps.Equal(remove, want) {
		t.Errorf("remove %v", remove)
	}
}

// A node that got a new address keeps its range: the entries of the old address
// go, and the neighbour is replaced, not removed.
func TestAddressChanges(t *testing.T) {
	before := plan(map[string]Peer{"b": {netip.MustParseAddr("192.0.2.2"), netip.MustParsePrefix("10.42.1.0/24")}})
	after := plan(map[string]Peer{"b": {netip.MustParseAddr("192.0.2.9"), netip.MustParsePrefix("10.42.1.0/24")}})
	if set, remove := difference(before.routes, after.routes); len(set)+len(remove) > 0 {
		t.Errorf("routes: set %v, remove %v", set, remove)
	}
	if set, remove := difference(before.neighbours, after.neighbours); len(set) != 1 || len(remove) != 0 {
		t.Errorf("neighbours: set %v, remove %v", set, remove)
	}
	if set, remove := difference(before.forwards, after.forwards); len(set) != 1 || len(remove) != 1 {
		t.Errorf("forwarding entries: set %v, remove %v", set, remove)
	}
}
