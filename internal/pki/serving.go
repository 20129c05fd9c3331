package pki

import (
	"net"
	"slices"
)

// ServingProfile is the API server's own certificate: every name and address
// under which clients inside and outside the cluster reach it. hosts holds
// node names, addresses and --tls-san values, serviceIP the address of the
// kubernetes Service, domain the cluster domain.
func ServingProfile(hosts []string, serviceIP net.IP, domain string) Profile {
	p := Profile{
		CommonName: "orch-server",
		Server:     true,
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + domain,
		},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if serviceIP != nil {
		p.IPs = append(p.IPs, serviceIP)
	}
	for _, host := range hosts {
		p.addHost(host)
	}
	return p
}

// NodeServingProfile is the certificate under which a node serves.
func NodeServingProfile(node string, addresses []net.IP) Profile {
	p := Profile{
		CommonName:    "system:node:" + node,
		Organizations: []string{"system:nodes"},
		Server:        true,
	}
	p.addHost(node)
	for _, ip := range addresses {
		p.addHost(ip.String())
	}
	return p
}

// NodeClientProfile is the identity of a node towards the API.
func NodeClientProfile(node string) Profile {
	return Profile{CommonName: "system:node:" + node, Organizations: []string{"system:nodes"}, Client: true}
}

// AdminProfile is the identity in the first kubeconfig.
func AdminProfile() Profile {
	return Profile{CommonName: "system:admin", Organizations: []string{"system:masters"}, Client: true}
}

func (p *Profile) addHost(host string) {
	ip := net.ParseIP(host)
	switch {
	case host == "":
	case ip == nil:
		if !slices.Contains(p.DNSNames, host) {
			p.DNSNames = append(p.DNSNames, host)
		}
	case !ip.IsUnspecified() && !slices.ContainsFunc(p.IPs, ip.Equal):
		p.IPs = append(p.IPs, ip)
	}
}

// PeerName is in the certificate of every server, under which it meets the
// others.
const PeerName = "server.orch.internal"

// PeerProfile is the identity of a server towards the other servers.
func PeerProfile(name string) Profile {
	return Profile{
		CommonName: "system:server:" + name, Organizations: []string{"system:servers"},
		DNSNames: []string{PeerName}, Server: true, Client: true,
	}
}
