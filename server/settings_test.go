package server

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orch/internal/joining"
)

func cidr(t *testing.T, text string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// valid is a configuration without anything wrong.
func valid(t *testing.T) Config {
	return Config{
		DataDir: t.TempDir(), Port: 6443, NodeName: "a", NodeIP: net.ParseIP("192.0.2.1"), AdvertiseAddress: net.ParseIP("192.0.2.1"),
		KubeconfigMode: 0o600, SnapshotRetention: 5,
	}
}

func TestSettle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ services, pods, dns, wantDNS string }{
		"defaults":        {"", "", "", "10.43.0.10"},
		"dns follows":     {"172.20.0.0/16", "", "", "172.20.0.10"},
		"across a byte":   {"172.20.0.248/28", "", "", "172.20.0.250"},
		"dns of its own":  {"172.20.0.0/16", "", "172.20.0.53", "172.20.0.53"},
		"carries further": {"10.96.255.0/20", "", "", "10.96.240.10"},
	} {
		c := valid(t)
		if test.services != "" {
			c.ServiceCIDR = cidr(t, test.services)
		}
		c.ClusterDNS = net.ParseIP(test.dns)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.settle(nil); err != nil || c.ClusterDNS.String() != test.wantDNS {
			t.Errorf("%s: DNS at %s (%v), want %s", name, c.ClusterDNS, err, test.wantDNS)
		}
	}
	if got := nthAddress(cidr(t, "10.0.0.252/30"), 10).String(); got != "10.0.1.6" {
		t.Errorf("the tenth address of 10.0.0.252/30 is %s", got)
	}
}

// What a cluster was founded with is kept, and another value is refused.
func TestSettleKeeps(t *testing.T) {
	t.Parallel()
	settled := &joining.Settings{ClusterCIDR: "10.1.0.0/16", ServiceCIDR: "10.2.0.0/16", ClusterDNS: "10.2.0.10", ClusterDomain: "a.test"}
	c := valid(t)
	if err := c.settle(settled); err != nil || c.ClusterCIDR.String() != "10.1.0.0/16" || c.ClusterDomain != "a.test" || c.ClusterDNS.String() != "10.2.0.10" {
		t.Errorf("%v %+v", err, c)
	}
	if err := c.settle(settled); err != nil {
		t.Errorf("the same values given: %v", err)
	}
	for flag, change := range map[string]func(*Config){
		"--cluster-cidr":   func(c *Config) { c.ClusterCIDR = cidr(t, "10.3.0.0/16") },
		"--service-cidr":   func(c *Config) { c.ServiceCIDR = cidr(t, "10.3.0.0/16") },
		"--cluster-dns":    func(c *Config) { c.ClusterDNS = net.ParseIP("10.2.0.11") },
		"--cluster-domain": func(c *Config) { c.ClusterDomain = "b.test" },
	} {
		c := valid(t)
		change(&c)
		if err := c.settle(settled); err == nil || !strings.HasPrefix(err.Error(), flag+" ") || !strings.Contains(err.Error(), "founded with") {
			t.Errorf("%s: %v", flag, err)
		}
		if err := c.fits(*settled); err == nil {
			t.Errorf("%s: fits a cluster that has another", flag)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hash := strings.Repeat("ab", 32)
	for want, change := range map[string]func(*Config){
		"--https-listen-port 0:":                     func(c *Config) { c.Port = 0 },
		"--https-listen-port 70000:":                 func(c *Config) { c.Port = 70000 },
		"--data-dir must not be empty":               func(c *Config) { c.DataDir = "" },
		file + " is a file":                          func(c *Config) { c.DataDir = file + "/data" },
		"--write-kubeconfig " + file + "/k":          func(c *Config) { c.Kubeconfig = file + "/k" },
		"is a folder":                                func(c *Config) { c.Kubeconfig = filepath.Dir(file) },
		"--write-kubeconfig-mode 000":                func(c *Config) { c.KubeconfigMode = 0 },
		"IPv4 network":                               func(c *Config) { c.ClusterCIDR = cidr(t, "fd00::/48") },
		"--service-cidr fd00::/108: ":                func(c *Config) { c.ServiceCIDR = cidr(t, "fd00::/108") },
		"/8 to /28":                                  func(c *Config) { c.ServiceCIDR = cidr(t, "10.43.0.0/30") },
		"/8 to /24":                                  func(c *Config) { c.ClusterCIDR = cidr(t, "10.42.0.0/25") },
		"--service-cidr 0.0.0.0/4: its":              func(c *Config) { c.ServiceCIDR = cidr(t, "0.0.0.0/4") },
		"private network":                            func(c *Config) { c.ServiceCIDR = cidr(t, "127.0.0.0/16") },
		"--cluster-cidr 224.0.0.0/16":                func(c *Config) { c.ClusterCIDR = cidr(t, "224.0.0.0/16") },
		"overlap":                                    func(c *Config) { c.ClusterCIDR = cidr(t, "10.0.0.0/8") },
		"machine's own address 192.0.2.1":            func(c *Config) { c.ClusterCIDR = cidr(t, "192.0.0.0/16") },
		"without the flag it is 10.43.0.10":          func(c *Config) { c.ClusterDNS = net.ParseIP("10.99.0.10") },
		"--cluster-dns 10.43.0.1: is taken":          func(c *Config) { c.ClusterDNS = net.ParseIP("10.43.0.1") },
		"--cluster-dns 10.43.255.255: is taken":      func(c *Config) { c.ClusterDNS = net.ParseIP("10.43.255.255") },
		"--cluster-domain \"A_b\"":                   func(c *Config) { c.ClusterDomain = "A_b" },
		"--tls-san \"https://a\"":                    func(c *Config) { c.TLSSANs = []string{"https://a"} },
		"--tls-san \"a:6443\"":                       func(c *Config) { c.TLSSANs = []string{"a:6443"} },
		"--advertise-address 0.0.0.0":                func(c *Config) { c.AdvertiseAddress = net.IPv4zero },
		"--disable \"dsn\"":                          func(c *Config) { c.Disable = []string{"dsn"} },
		"--cloud-provider \"aws\"":                   func(c *Config) { c.CloudProvider = "aws" },
		"--join needs --token":                       func(c *Config) { c.Join = "https://a:6443" },
		"--join \"a:6443\": must be of the form":     func(c *Config) { c.Join, c.Token = "a:6443", "x" },
		"--join \"https://a:70000\": use a port":     func(c *Config) { c.Join, c.Token = "https://a:70000", "x" },
		"--join \"https://a:6443/x\"":                func(c *Config) { c.Join, c.Token = "https://a:6443/x", "x" },
		"--token: not a join token":                  func(c *Config) { c.Token = "a::b" },
		"--token: this one is for agents":            func(c *Config) { c.Token = "K10" + hash + "::node:a" },
		"--token: is the whole token":                func(c *Config) { c.Token = "K10" + hash + "::server:a" },
		"--agent-token: this one is for servers":     func(c *Config) { c.AgentToken = "K10" + hash + "::server:a" },
		"--snapshot-interval 1ns":                    func(c *Config) { c.SnapshotInterval = 1 },
		"--flush-delay, --log-bytes and":             func(c *Config) { c.LogBytes = -1 },
		"--snapshot-retention 0: keep at least one":  func(c *Config) { c.SnapshotInterval, c.SnapshotRetention = 1<<40, 0 },
		"--snapshot-retention -1: keep at least one": func(c *Config) { c.SnapshotInterval, c.SnapshotRetention = 1<<40, -1 },
	} {
		c := valid(t)
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; want %q", err, want)
		}
		left, err := os.ReadDir(c.DataDir)
		if c.DataDir != "" && (len(left) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) && !strings.HasPrefix(c.DataDir, file)) {
			t.Errorf("%s: something was written: %v %v", want, left, err)
		}
	}
	c := valid(t)
	c.Disable, c.CloudProvider = []string{"servicelb", "proxy"}, "external"
	if err := c.Validate(); err != nil || len(c.Warnings()) != 2 {
		t.Errorf("%v, warnings %q", err, c.Warnings())
	}
}
