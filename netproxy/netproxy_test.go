package netproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/netproxy/rules"
	"orch/netproxy/wire"
)

func TestPodNetwork(t *testing.T) {
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer n.stop()
	a, b := n.addPod("pod-a"), n.addPod("pod-b")
	a.serve(8080)
	b.serve(8080)
	n.serve(n.outside, "outside", 9090)
	self := here(t)
	n.serve(self, "node", 9091)

	n.expect(a.ns, "tcp", b.ip.String()+":8080", "pod-b", a.ip)
	n.expect(a.ns, "udp", b.ip.String()+":8080", "pod-b", a.ip)
	n.expect(self, "tcp", a.ip.String()+":8080", "pod-a", nodeIP)
	n.expect(a.ns, "tcp", nodeIP.String()+":9091", "node", a.ip)
	n.expect(a.ns, "tcp", "127.0.0.1:8080", "pod-a", netip.MustParseAddr("127.0.0.1"))
	n.expect(a.ns, "tcp", outsideIP.String()+":9090", "outside", nodeIP) // masqueraded
	a.remove()
	b.remove()
}

// TestPartsLeftOut runs the network without each of its parts and without
// several, in each mode: a service and a host port come and go, and pods reach
// what is left.
func TestPartsLeftOut(t *testing.T) {
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	for i, mode := range []string{ModeIPTables, ModeNFTables, ModeUserspace} {
		for left := range 4 {
			proxy, dns := left&1 != 0, left&2 != 0
			t.Logf("%s, without proxy: %v, without DNS: %v", mode, proxy, dns)
			n.stop()
			n.alter = func(c *Config) { c.Mode, c.DisableProxy, c.DisableDNS = mode, proxy, dns }
			n.start()
			name := fmt.Sprintf("pod-%d-%d", i, left)
			pod := n.addPod(name, wire.PortMapping{HostPort: 8081, ContainerPort: 8080, Protocol: "tcp"})
			pod.serve(8080)
			clusterIP := fmt.Sprintf("10.43.1.%d", 10*i+left+1)
			n.service(name, clusterIP, nil, pod)
			n.expect(n.outside, "tcp", nodeIP.String()+":8081", name, netip.Addr{})
			if _, _, err := n.ask(here(t), "tcp", clusterIP+":80"); (err != nil) != proxy {
				t.Errorf("the service's address: %v", err)
			}
			if conn, err := net.Dial("tcp", dnsIP.String()+":53"); (err != nil) != dns {
				t.Errorf("the name server's address: %v", err)
			} else if err == nil {
				conn.Close()
			}
			must(t, n.client.CoreV1().Services("default").Delete(t.Context(), name, metav1.DeleteOptions{}))
			pod.remove()
			n.settle()
		}
	}
}

func TestPreflight(t *testing.T) {
	if !isolated(t) {
		return
	}
	before := rulesAndLinks(t)
	for _, mode := range []string{ModeIPTables, ModeUserspace} {
		must(t, Preflight(t.Context(), mode))
	}
	if after := rulesAndLinks(t); after != before {
		t.Errorf("the machine was changed:\n%s\nbefore:\n%s", after, before)
	}
	t.Setenv("PATH", t.TempDir())
	if err := Preflight(t.Context(), ModeIPTables); !errors.Is(err, rules.ErrNoIPTables) {
		t.Errorf("without iptables: %v", err)
	}
}

func rulesAndLinks(t *testing.T) string {
	out, err := exec.Command("sh", "-c", "iptables-save; ip -o link").Output()
	must(t, err)
	return string(out)
}

func TestConfigNamesTheFlag(t *testing.T) {
	for flag, change := range map[string]func(*Config){
		"--data-dir":     func(c *Config) { c.DataDir = "" },
		"--proxy-mode":   func(c *Config) { c.Mode = "ipvs" },
		"--node-ip":      func(c *Config) { c.NodeIP = netip.MustParseAddr("::1") },
		"--cluster-cidr": func(c *Config) { c.ClusterCIDR = netip.Prefix{} },
		"--service-cidr": func(c *Config) { c.ServiceCIDR = netip.MustParsePrefix("fd00::/112") },
		"--cluster-dns":  func(c *Config) { c.ClusterDNS = netip.MustParseAddr("10.44.0.1") },
		"overlap":        func(c *Config) { c.ClusterCIDR = c.ServiceCIDR },
	} {
		config := (&node{t: t, dataDir: "/x"}).config()
		config.setDefaults()
		must(t, config.Validate())
		change(&config)
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
