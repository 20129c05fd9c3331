package server

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"orch/server/auth"
	"orch/server/registry"
)

// claims says what nodes cannot call their own in this cluster.
func (a *assembly) claims() auth.Claims {
	own := func(name string) bool { return name == a.cfg.NodeName }
	return auth.Claims{
		Pods: prefixOf(a.cfg.ClusterCIDR), Services: prefixOf(a.cfg.ServiceCIDR), Domain: a.cfg.ClusterDomain,
		Names:   slices.DeleteFunc(slices.Clone(a.cfg.TLSSANs), own),
		Nodes:   func() []*corev1.Node { return registry.Of[*corev1.Node](a.registry).List("", nil) },
		Servers: a.serverAddresses,
	}
}

// recheck ends what the user's credentials hold open when they are no longer good.
func (a *assembly) recheck(name string, match func(*auth.User) bool) {
	a.api.Recheck(name, match)
	if node, ok := strings.CutPrefix(name, auth.NodeUserPrefix); ok {
		a.hub.Recheck(node)
	}
}

// serverAddresses gives the name of the server at each address.
func (a *assembly) serverAddresses(ctx context.Context) (map[netip.Addr]string, error) {
	members, err := a.store.Members(ctx)
	if err != nil {
		return nil, err
	}
	servers := make(map[netip.Addr]string, len(members))
	for _, m := range members {
		if at, err := netip.ParseAddrPort(m.Address); err == nil {
			servers[at.Addr().Unmap()] = m.Name
		}
	}
	return servers, nil
}

// prefixOf is the zero prefix, which contains nothing, for no network.
func prefixOf(network *net.IPNet) netip.Prefix {
	if network == nil {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(network.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := network.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits).Masked()
}
