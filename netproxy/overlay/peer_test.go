package overlay

import (
	"encoding/json"
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

var testLimits = Limits{Own: netip.MustParsePrefix("10.42.0.0/24"), Cluster: netip.MustParsePrefix("10.42.0.0/16"), Services: netip.MustParsePrefix("10.43.0.0/16")}

// TestAdmit leaves out nodes that would take what is others'.
func TestAdmit(t *testing.T) {
	peer := func(addr, prefix string) podnet.Peer {
		return podnet.Peer{Addr: netip.MustParseAddr(addr), Range: netip.MustParsePrefix(prefix)}
	}
	b, c := peer("192.0.2.2", "10.42.1.0/24"), peer("192.0.2.3", "10.42.2.0/24")
	for name, test := range map[string]struct {
		hostile podnet.Peer
		before  map[string]podnet.Peer
		lost    string // who else loses
	}{
		"a neighbour":            {peer("192.0.2.4", "10.42.3.0/24"), nil, "-"},
		"the nodes' own network": {peer("192.0.2.4", "192.0.2.0/24"), nil, ""},
		"everything":             {peer("192.0.2.4", "0.0.0.0/0"), nil, ""},
		"the services":           {peer("192.0.2.4", "10.43.0.0/24"), nil, ""},
		"the cluster":            {peer("192.0.2.4", "10.42.0.0/16"), nil, ""},
		"this node's":            {peer("192.0.2.4", "10.42.0.128/25"), nil, ""},
		"more than the cluster":  {peer("192.0.2.4", "10.0.0.0/8"), nil, ""},
		"at a pod":               {peer("10.42.9.9", "10.42.3.0/24"), nil, ""},
		"at a service":           {peer("10.43.0.1", "10.42.3.0/24"), nil, ""},
		"at loopback":            {peer("127.0.0.1", "10.42.3.0/24"), nil, ""},
		"IPv6":                   {peer("2001:db8::1", "fd00::/64"), nil, ""},
		"nowhere":                {podnet.Peer{}, nil, ""},
		"another's, later":       {peer("192.0.2.4", "10.42.1.0/24"), map[string]podnet.Peer{"b": b, "c": c}, ""},
		"a part of another's":    {peer("192.0.2.4", "10.42.2.64/26"), map[string]podnet.Peer{"b": b, "c": c}, ""},
		"two others', later":     {peer("192.0.2.4", "10.42.2.0/23"), map[string]podnet.Peer{"b": b, "c": c}, ""},
	} {
		got := testLimits.admit(map[string]podnet.Peer{"a": test.hostile, "b": b, "c": c}, test.before)
		if _, admitted := got["a"]; admitted != (test.lost == "-") || got["b"] != b || got["c"] != c {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzAdmit plans ways to whatever nodes a server may tell of.
func FuzzAdmit(f *testing.F) {
	f.Add([]byte(`{"whole":true,"peers":{"a":{"addr":"192.0.2.1","range":"10.42.1.0/24"},"b":{"addr":"192.0.2.2","range":"10.42.1.0/25"}}}`))
	f.Add([]byte(`{"peers":{"a":{},"b":{"addr":"::1","range":"fd00::/8"},"c":{"addr":"192.0.2.2","range":"10.42.1.9/24"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var u podnet.Update
		if json.Unmarshal(data, &u) != nil {
			return
		}
		admitted := testLimits.admit(u.Peers, nil)
		e := plan(admitted)
		for prefix := range e.routes {
			if !testLimits.Cluster.Contains(prefix.Addr()) || prefix.Overlaps(testLimits.Own) {
				t.Errorf("a way that leads astray: %s", prefix)
			}
		}
		if len(e.routes) != len(admitted) {
			t.Errorf("pods at two nodes: %v", admitted)
		}
	})
}
