package server

import (
	"cmp"
	"fmt"
	"net"
	"slices"

	"orch/internal/joining"
	"orch/server/join"
)

// Defaults of what all servers of a cluster agree on. Its DNS has the tenth
// address of the services' network.
const (
	defaultClusterCIDR   = "10.42.0.0/16"
	defaultServiceCIDR   = "10.43.0.0/16"
	defaultClusterDomain = "cluster.local"
	dnsOrdinal           = 10
)

// settle gives what was not told by flags: what the cluster was founded with, or
// the defaults. s is nil for a cluster that is founded now. Objects carry addresses
// and names of these networks, so that another value would cut them off: it is
// refused.
func (c *Config) settle(s *joining.Settings) error {
	if s != nil {
		for _, v := range []struct{ flag, given, settled string }{
			{"--cluster-cidr", textOf(c.ClusterCIDR), s.ClusterCIDR},
			{"--service-cidr", textOf(c.ServiceCIDR), s.ServiceCIDR},
			{"--cluster-dns", addressText(c.ClusterDNS), s.ClusterDNS},
			{"--cluster-domain", c.ClusterDomain, s.ClusterDomain},
		} {
			if v.given != "" && v.given != v.settled {
				return fmt.Errorf("%s %s: this cluster was founded with %s, which its objects carry, and cannot change it: leave the flag out, or begin a new cluster with another --data-dir", v.flag, v.given, v.settled)
			}
		}
	} else {
		s = &joining.Settings{}
	}
	var err error
	if c.ClusterCIDR, err = network(c.ClusterCIDR, cmp.Or(s.ClusterCIDR, defaultClusterCIDR)); err != nil {
		return err
	}
	if c.ServiceCIDR, err = network(c.ServiceCIDR, cmp.Or(s.ServiceCIDR, defaultServiceCIDR)); err != nil {
		return err
	}
	c.ClusterDomain = cmp.Or(c.ClusterDomain, s.ClusterDomain, defaultClusterDomain)
	if c.ClusterDNS == nil {
		c.ClusterDNS = net.ParseIP(s.ClusterDNS)
	}
	if c.ClusterDNS == nil {
		c.ClusterDNS = nthAddress(c.ServiceCIDR, dnsOrdinal)
	}
	return nil
}

// settings are what the other members of the cluster are told.
func (c *Config) settings() joining.Settings {
	return joining.Settings{
		ClusterCIDR: textOf(c.ClusterCIDR), ServiceCIDR: textOf(c.ServiceCIDR),
		ClusterDNS: c.ClusterDNS.String(), ClusterDomain: c.ClusterDomain,
	}
}

// settled gives what the cluster of this data directory was founded with; nil:
// there is none yet.
func (c *Config) settled() (*joining.Settings, error) {
	dir := c.serverDir()
	if !join.Joined(dir) {
		return nil, nil
	}
	return join.Settings(dir)
}

func network(given *net.IPNet, text string) (*net.IPNet, error) {
	if given != nil {
		return given, nil
	}
	_, network, err := net.ParseCIDR(text)
	if err != nil {
		return nil, fmt.Errorf("cluster settings: %w", err)
	}
	return network, nil
}

func textOf(n *net.IPNet) string {
	if n == nil {
		return ""
	}
	return n.String()
}

func addressText(ip net.IP) string {
	if ip == nil {
		return ""
	}
	return ip.String()
}

// nthAddress counts from the network's own address.
func nthAddress(n *net.IPNet, nth int) net.IP {
	ip := slices.Clone(n.IP)
	for i := len(ip) - 1; i >= 0 && nth > 0; i-- {
		nth += int(ip[i])
		ip[i] = byte(nth)
		nth >>= 8
	}
	return ip
}
