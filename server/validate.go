package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"

	"orch/internal/joining"
	"orch/server/join"
)

// Validate checks all that can be known before anything is written or listened
// on, also against what the data directory holds.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fmt.Errorf("--data-dir must not be empty")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("--https-listen-port %d: use a port from 1 to 65535", c.Port)
	case c.FlushDelay < 0 || c.LogBytes < 0 || c.HistorySize < 0:
		return fmt.Errorf("--flush-delay, --log-bytes and --history-size must not be negative")
	case c.SnapshotInterval < 0 || c.SnapshotInterval > 0 && c.SnapshotInterval < time.Minute:
		return fmt.Errorf("--snapshot-interval %s: use 0 or at least a minute", c.SnapshotInterval)
	case c.SnapshotRetention < 1 && c.SnapshotInterval > 0:
		return fmt.Errorf("--snapshot-retention %d: keep at least one", c.SnapshotRetention)
	case c.CloudProvider != "" && c.CloudProvider != "external" && c.CloudProvider != "orch":
		return fmt.Errorf(`--cloud-provider %q: use "", external or orch`, c.CloudProvider)
	case c.KubeconfigMode&0o400 == 0:
		return fmt.Errorf("--write-kubeconfig-mode %03o: its owner must be able to read it: use 600, or 640 for a group", c.KubeconfigMode)
	}
	for _, part := range c.Disable {
		if !slices.Contains(parts, part) && !slices.Contains(futureParts, part) {
			return fmt.Errorf("--disable %q: use any of %s", part, strings.Join(parts, ", "))
		}
	}
	settled, err := c.settled()
	if err != nil {
		return err
	}
	whole := *c
	if err := whole.settle(settled); err != nil {
		return err
	}
	// The first trouble alone: one line tells what to mend.
	for _, check := range []func() error{whole.validateNetworks, whole.validateNames, c.validateJoin, c.SnapshotS3.Validate, c.validateFiles} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// Sizes of networks, in bits of their prefixes.
const (
	smallestCluster = 24 // one node's share
	smallestService = 28 // the cluster DNS has the tenth address
	largestNetwork  = 8
)

func (c *Config) validateNetworks() error {
	for _, n := range []struct {
		flag     string
		network  *net.IPNet
		smallest int
	}{{"--cluster-cidr", c.ClusterCIDR, smallestCluster}, {"--service-cidr", c.ServiceCIDR, smallestService}} {
		if err := validateNetwork(n.network, n.smallest); err != nil {
			return fmt.Errorf("%s %s: %w", n.flag, n.network, err)
		}
		for flag, ip := range map[string]net.IP{"--node-ip": c.NodeIP, "--advertise-address": c.AdvertiseAddress} {
			if ip != nil && n.network.Contains(ip) {
				return fmt.Errorf("%s %s: holds this machine's own address %s (%s): choose a network that nothing else uses", n.flag, n.network, ip, flag)
			}
		}
	}
	switch {
	case c.ServiceCIDR.Contains(c.ClusterCIDR.IP) || c.ClusterCIDR.Contains(c.ServiceCIDR.IP):
		return fmt.Errorf("--cluster-cidr %s and --service-cidr %s overlap: choose networks that do not", c.ClusterCIDR, c.ServiceCIDR)
	case !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("--cluster-dns %s: must lie in --service-cidr %s; without the flag it is %s", c.ClusterDNS, c.ServiceCIDR, nthAddress(c.ServiceCIDR, dnsOrdinal))
	case c.ClusterDNS.Equal(c.ServiceCIDR.IP) || c.ClusterDNS.Equal(join.FirstServiceIP(c.ServiceCIDR)) || c.ClusterDNS.Equal(last(c.ServiceCIDR)):
		return fmt.Errorf("--cluster-dns %s: is taken (the network's own address, that of the kubernetes Service, or the last one): without the flag it is %s", c.ClusterDNS, nthAddress(c.ServiceCIDR, dnsOrdinal))
	}
	return nil
}

func validateNetwork(n *net.IPNet, smallest int) error {
	ones, bits := n.Mask.Size()
	switch {
	case bits != 32:
		return errors.New("pods and services have IPv4 addresses so far: use an IPv4 network")
	case ones < largestNetwork || ones > smallest:
		return fmt.Errorf("its prefix must be from /%d to /%d", largestNetwork, smallest)
	case !n.IP.IsGlobalUnicast() || !last(n).IsGlobalUnicast():
		return errors.New("machines have no such addresses: use a private network, such as 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, or a part of one")
	}
	return nil
}

// last is the network's last address.
func last(n *net.IPNet) net.IP {
	ip := slices.Clone(n.IP)
	for i := range ip {
		ip[i] |= ^n.Mask[i]
	}
	return ip
}

func (c *Config) validateNames() error {
	if problems := validation.IsDNS1123Subdomain(c.ClusterDomain); len(problems) > 0 {
		return fmt.Errorf("--cluster-domain %q: %s", c.ClusterDomain, problems[0])
	}
	for _, san := range c.TLSSANs {
		name := strings.ToLower(san)
		if net.ParseIP(san) == nil && len(validation.IsDNS1123Subdomain(name)) > 0 && len(validation.IsWildcardDNS1123Subdomain(name)) > 0 {
			return fmt.Errorf("--tls-san %q: must be a DNS name or an IP address, without scheme and port", san)
		}
	}
	if ip := c.AdvertiseAddress; ip != nil && (ip.IsUnspecified() || ip.IsMulticast()) {
		return fmt.Errorf("--advertise-address %s: other machines cannot reach that: give one of this machine's addresses", ip)
	}
	return nil
}

// validateJoin looks at what servers and nodes join with. Whether the secret is the
// one in force is not known here: it may have been rotated.
func (c *Config) validateJoin() error {
	if c.Join != "" {
		if err := joining.ValidateURL("--join", c.Join); err != nil {
			return err
		}
	}
	known := join.Joined(c.serverDir())
	if c.Join != "" && c.Token == "" && !known {
		return errors.New("--join needs --token or --token-file: the text of <data-dir>/server/token of a server")
	}
	for _, t := range []struct{ flag, text, user, others, file string }{
		{"--token", c.Token, joining.UserServer, "agents", "token"},
		{"--agent-token", c.AgentToken, joining.UserNode, "servers", "agent-token"},
	} {
		if t.text == "" {
			continue
		}
		token, err := joining.ParseToken(t.text)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", t.flag, err)
		case token.User != "" && token.User != t.user:
			return fmt.Errorf("%s: this one is for %s: give the text of <data-dir>/server/%s", t.flag, t.others, t.file)
		case c.Join == "" && !known && token.CAHash != "":
			return fmt.Errorf("%s: is the whole token of a cluster that there is, and this server founds a new one: give --join https://HOST:6443 to join that cluster, or a bare secret", t.flag)
		case known:
			if err := join.OfCluster(c.serverDir(), token); err != nil {
				return fmt.Errorf("%s: %w", t.flag, err)
			}
		}
	}
	return nil
}

func (c *Config) validateFiles() error {
	if err := writableFolder(c.DataDir); err != nil {
		return fmt.Errorf("--data-dir %s: %w", c.DataDir, err)
	}
	if c.Kubeconfig == "" {
		return nil
	}
	if info, err := os.Stat(c.Kubeconfig); err == nil && info.IsDir() {
		return fmt.Errorf("--write-kubeconfig %s: is a folder: name a file", c.Kubeconfig)
	}
	if err := writableFolder(filepath.Dir(c.Kubeconfig)); err != nil {
		return fmt.Errorf("--write-kubeconfig %s: %w", c.Kubeconfig, err)
	}
	return nil
}

// writableFolder checks that dir is a folder where files can be made, or that it
// can be made itself.
func writableFolder(dir string) error {
	for {
		info, err := os.Stat(dir)
		switch {
		case (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)) && dir != filepath.Dir(dir):
			dir = filepath.Dir(dir)
			continue
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is a file, where a folder is needed", dir)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("cannot write in %s: %w: choose another place, or run as root", dir, err)
		}
		return nil
	}
}
