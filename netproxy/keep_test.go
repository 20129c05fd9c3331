package netproxy

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/internal/podnet"
)

// TestKeep takes away, one after the other, everything that the node has in the
// kernel, and sees it come back.
func TestKeep(t *testing.T)         { testKeep(t) }
func TestKeepNFTables(t *testing.T) { testKeep(t) }

func testKeep(t *testing.T) {
	t.Helper()
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	n.stop()
	peers := newPeerFeed(podnet.Update{Whole: true, Peers: map[string]podnet.Peer{
		"node-1": {Addr: nodeIP, Range: netip.MustParsePrefix("10.42.0.0/24")},
		"node-2": {Addr: outsideIP, Range: netip.MustParsePrefix("10.42.1.0/24")},
	}})
	n.alter = func(c *Config) { c.Peers = peers.open }
	n.start()
	defer func() { n.stop() }()
	pod := n.addPod("pod")
	pod.serve(8080)
	n.service("web", "10.43.0.60", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30090
	}, pod)
	n.eventually(t, "the tunnel", func() bool {
		return n.state() != "" && strings.Contains(n.state(), "10.42.1.0/24 via 10.42.1.0 dev orch-vxlan onlink")
	})
	before := n.state()
	link := "veth$(ip -o link | sed -n 's/.* veth\\([0-9a-f]*\\)@.*0e:6f:72:63:68:01.*/\\1/p')"
	flush := "iptables -t nat -F; iptables -F; iptables -t raw -F"
	if n.mode() == ModeNFTables {
		flush = "nft flush table ip orch"
	}
	elements := "true"
	if n.mode() == ModeNFTables {
		elements = "nft flush map ip orch service-ips"
	}
	for what, command := range map[string]string{
		"the node's address":      "ip addr del 192.168.77.1/24 dev eth0; sleep 0.3; ip addr add 192.168.77.1/24 dev eth0; ip route add default via 192.168.77.2",
		"the node's link":         "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.168.77.2",
		"the anchor":              "ip link del orch0",
		"the anchor's addresses":  "ip addr flush dev orch0",
		"the anchor, down":        "ip link set orch0 down",
		"the service route":       "ip route del 10.43.0.0/16",
		"the unreachable route":   "ip route del unreachable 10.42.0.0/16 metric 1048576",
		"the tunnel":              "ip link del orch-vxlan",
		"the tunnel's address":    "ip addr flush dev orch-vxlan",
		"the tunnel, down":        "ip link set orch-vxlan down",
		"the tunnel's route":      "ip route del 10.42.1.0/24",
		"the tunnel's neighbour":  "ip neigh del 10.42.1.0 dev orch-vxlan",
		"the tunnel's forwarding": "bridge fdb del 0e:76:c0:a8:4d:02 dev orch-vxlan dst 192.168.77.2",
		"the pod's link":          "ip link del " + link,
		"the pod's link, down":    "ip link set " + link + " down",
		"the pod's route":         "ip route del " + pod.ip.String(),
		"the pod's route, bent":   "ip route replace blackhole " + pod.ip.String(),
		"the pod's neighbour":     "ip neigh del " + pod.ip.String() + " dev " + link,
		"the source check":        "sysctl -qw net.ipv4.conf." + link + ".rp_filter=0",
		"forwarding":              "sysctl -qw net.ipv4.ip_forward=0",
		"ports at 127.0.0.1":      "sysctl -qw net.ipv4.conf.all.route_localnet=0",
		"the rules":               flush,
		"what rules lead to":      elements,
	} {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Errorf("take away %s: %v: %s", what, err, out)
			continue
		}
		if !n.eventually(t, what, func() bool { return n.state() == before }) {
			t.Logf("is:\n%s\nwas:\n%s", n.state(), before)
		}
	}
	self := here(t)
	n.expect(self, "tcp", pod.ip.String()+":8080", "pod", gatewayIP)
	n.expect(self, "tcp", "10.43.0.60:80", "pod", anyone)
	n.expect(self, "tcp", "127.0.0.1:30090", "pod", anyone)
	n.expect(n.outside, "tcp", nodeIP.String()+":30090", "pod", anyone)
	n.expect(pod.ns, "tcp", "10.43.0.60:80", "pod", anyone)
	if conn, err := net.Dial("tcp", dnsIP.String()+":53"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
}

// state is all that is the node's in the kernel, as people see it.
func (n *node) state() string {
	script := `ip -o addr show | grep -E 'orch0|orch-vxlan' | grep -w inet | sed 's/^[0-9]*: //;s/valid_lft.*//'
		ip -o link show | grep -E 'orch0|orch-vxlan|veth' | sed 's/^[0-9]*: //;s/@if[0-9]*//;s/link-netns.*//;s/ state [A-Z]*//;s/link.ether \([0-9a-f:]*\).*/\1/' | grep -oE '^[^:]*: <[^>]*>' | sed 's/NO-CARRIER,//;s/,LOWER_UP//'
		ip route show | grep -E '10\.4[23]\.' | sed 's/ linkdown//'
		ip neigh show nud permanent | grep -vE 'eth0'
		bridge fdb show dev orch-vxlan | grep -v ' vlan '
		grep -H . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/route_localnet /proc/sys/net/ipv4/conf/veth*/rp_filter /proc/sys/net/ipv6/conf/veth*/disable_ipv6`
	out, _ := exec.Command("sh", "-c", "("+script+") 2>&1 | sort").CombinedOutput()
	return string(out) + n.saved()
}

func (n *node) eventually(t *testing.T, what string, ok func() bool) bool {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Errorf("%s did not come back", what)
			return false
		}
	}
	return true
}
