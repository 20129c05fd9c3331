package auth

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"orch/internal/pki"
)

// Claims decides what a node may call its own: the name under which it joins,
// and the addresses that stand in its Node, in its certificate and in the pod
// network. A node that were believed could pass itself off as the API, as
// another node, or as a service. The zero value knows of no others.
type Claims struct {
	Pods, Services netip.Prefix // of the cluster
	Domain         string       // of the cluster
	Names          []string     // further ones that servers are reached by
	Nodes          func() []*corev1.Node
	// Servers gives the name of the server at each address.
	Servers func(context.Context) (map[netip.Addr]string, error)
}

// Name refuses a name that is, or may be taken for, that of something else.
func (c Claims) Name(ctx context.Context, name string, from netip.Addr) error {
	if c.reserved(name) {
		return fmt.Errorf("node name %q stands for the API or a service: give this machine another --node-name", name)
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return c.Address(ctx, name, corev1.NodeInternalIP, ip)
	}
	servers, err := c.servers(ctx)
	if err != nil {
		return err
	}
	known := false
	for address, server := range servers {
		if server != name {
			continue
		}
		if known = true; address == from {
			return nil
		}
	}
	if known && !from.IsLoopback() {
		return fmt.Errorf("node name %q belongs to a server, and this is not its machine: give this machine another --node-name", name)
	}
	return nil
}

// reserved are the names in servers' certificates, and those of services.
func (c Claims) reserved(name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	labels := strings.Split(name, ".")
	switch {
	case name == "kubernetes", name == "kubernetes.default", labels[len(labels)-1] == "localhost", name == pki.PeerName:
		return true
	case len(labels) > 2 && labels[2] == "svc": // name.namespace.svc…
		return true
	case c.Domain != "" && (name == c.Domain || strings.HasSuffix(name, "."+c.Domain)):
		return true
	}
	return slices.ContainsFunc(c.Names, func(n string) bool { return strings.EqualFold(n, name) })
}

// DNSName refuses a name in the addresses of a node that is not its own.
func (c Claims) DNSName(node, name string) error {
	if name == node || strings.HasPrefix(name, node+".") && !c.reserved(name) {
		return nil
	}
	return fmt.Errorf("%q is not the name of node %q", name, node)
}

// Address refuses an address that cannot be a node's, or is another's. Several
// nodes may be reached from outside by one address.
func (c Claims) Address(ctx context.Context, node string, kind corev1.NodeAddressType, ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if !ip.IsGlobalUnicast() {
		return fmt.Errorf("%s is no address by which others could reach node %q", ip, node)
	}
	for what, network := range map[string]netip.Prefix{"services": c.Services, "pods": c.Pods} {
		if network.Contains(ip) {
			return fmt.Errorf("%s is an address of %s (%s), not of node %q: give the machine's own one with --node-ip", ip, what, network, node)
		}
	}
	servers, err := c.servers(ctx)
	if err != nil {
		return err
	}
	if server, taken := servers[ip]; taken && server != node {
		return fmt.Errorf("%s is the address of server %q, not of node %q", ip, server, node)
	}
	if c.Nodes == nil {
		return nil
	}
	for _, other := range c.Nodes() {
		if other.Name != node && holds(other, kind, ip) {
			return fmt.Errorf("%s is the address of node %q, which is ready: node %q cannot have it; if it replaces that one, wait until that one is NotReady, or delete it", ip, other.Name, node)
		}
	}
	return nil
}

func (c Claims) servers(ctx context.Context) (map[netip.Addr]string, error) {
	if c.Servers == nil {
		return nil, nil
	}
	return c.Servers(ctx)
}

// holds tells whether a node that is ready has the address. A machine that was
// installed anew under another name comes back at the address of the old one.
func holds(n *corev1.Node, kind corev1.NodeAddressType, ip netip.Addr) bool {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	return ready && slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		if a.Type != corev1.NodeInternalIP && (a.Type != corev1.NodeExternalIP || kind == corev1.NodeExternalIP) {
			return false
		}
		held, err := netip.ParseAddr(a.Address)
		return err == nil && held.Unmap() == ip
	})
}

// NodeAddresses refuses what n newly says of where it is; old may be nil.
func (c Claims) NodeAddresses(ctx context.Context, n, old *corev1.Node) error {
	for _, a := range n.Status.Addresses {
		if old != nil && slices.Contains(old.Status.Addresses, a) {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		isIP := a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP
		switch {
		case isIP && err != nil:
			return fmt.Errorf("%s %q of node %q is not an address", a.Type, a.Address, n.Name)
		case err == nil:
			err = c.Address(ctx, n.Name, a.Type, ip)
		default:
			err = c.DNSName(n.Name, a.Address)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
