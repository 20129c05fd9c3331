package overlay

import (
	"maps"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/podnet"
)

func testNode(name, podCIDR string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDR}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
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
	before := plan(map[string]podnet.Peer{"b": {Addr: netip.MustParseAddr("192.0.2.2"), Range: netip.MustParsePrefix("10.42.1.0/24")}})
	after := plan(map[string]podnet.Peer{"b": {Addr: netip.MustParseAddr("192.0.2.9"), Range: netip.MustParsePrefix("10.42.1.0/24")}})
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
