package netproxy

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"orch/netproxy/rules"
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
