package rules

import (
	"fmt"
	"net/netip"
)

// The guard keeps pods to their own addresses, and the tunnel to nodes:
//
//   - a packet whose answer would not leave by the link that it came in by has
//     somebody else's address: nothing of it passes, whatever it is for;
//   - 127.0.0.0/8 is the node's own, except for answers to what the node sent out;
//   - VXLAN believes every packet, so only nodes may send it here, and no pod may
//     have a node send it (by masquerading, or by a service that leads there).
//
// It costs each packet of a pod one look at the routes, and needs nothing of its
// own per pod.

const (
	rawTable   = "raw" // before connections are told apart: what is not what it says must not match one
	tunnelPort = 8472  // UDP; see package overlay
	podLinks   = "veth"
)

var (
	chainGuard = Chain{rawTable, "ORCH-GUARD"}
	// chainTunnel takes what nodes send; chainNoTunnel has the rest, once it is
	// known which nodes there are.
	chainTunnel   = Chain{filterTable, "ORCH-TUNNEL"}
	chainNoTunnel = Chain{filterTable, "ORCH-NO-TUNNEL"}
)

// baseGuard adds the guard's fixed chains.
func baseGuard(facts *Facts, chains map[Chain][]string) {
	cluster := facts.ClusterCIDR.String()
	if facts.ReversePath {
		const spoofed = " -m rpfilter --invert -j DROP"
		chains[chainGuard] = []string{
			"! -i lo -s 127.0.0.0/8 -j DROP",
			"-i " + podLinks + "+" + spoofed,
			"-s " + facts.PodCIDR.String() + spoofed,
		}
		if facts.TunnelLink != "" {
			chains[chainGuard] = append(chains[chainGuard], "-i "+facts.TunnelLink+spoofed)
		}
	}
	tunnel := fmt.Sprintf("-p udp -m udp --dport %d", tunnelPort)
	chains[chainInput] = append([]string{
		// Links accept 127.0.0.0/8 for the sake of host ports and node ports there;
		// only answers may use that (CVE-2020-8558).
		"! -i lo -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
		"-s " + cluster + " " + tunnel + " -j DROP",
		tunnel + " -j " + chainTunnel.Name,
		tunnel + " -j " + chainNoTunnel.Name,
	}, chains[chainInput]...)
	chains[chainForward] = append([]string{
		"-s " + cluster + " ! -d " + cluster + " " + tunnel + " -j DROP",
		"! -d " + cluster + " " + tunnel + " -m conntrack --ctstate DNAT -j DROP",
	}, chains[chainForward]...)
}

// sourceBucket is where rules for a source address stand.
func sourceBucket(parent Chain, addr netip.Addr) bucket {
	b := addressBucket(parent, addr)
	b.selector = "-s" + b.selector[len("-d"):]
	return b
}

// SetNode implements Filter.
func (r *Ruleset) SetNode(name string, addr netip.Addr) {
	owner := "node/" + name
	if !addr.Is4() {
		r.set(owner, nil)
		return
	}
	f := newFragment()
	f.dispatch(sourceBucket(chainTunnel, addr), "-s "+addr.String()+"/32 -j ACCEPT")
	r.set(owner, f)
}

// NodesKnown implements Filter.
func (r *Ruleset) NodesKnown() {
	f := newFragment()
	f.dispatch(fixedBucket(chainNoTunnel), "-j DROP")
	r.set("tunnel", f)
}

// Of mode nftables.
const (
	nftGuard     = "guard-loopback"
	nftNodes     = "nodes" // address -> verdict
	nftNoTunnel  = "no-tunnel"
	nftSpoofed   = "fib saddr . iif oif missing drop"
	nftPreRouted = "raw-prerouting"
)

// nftBaseGuard adds the guard's fixed chains.
func nftBaseGuard(facts *Facts, chains map[string][]string) {
	cluster := facts.ClusterCIDR.String()
	chains[nftPreRouted] = []string{
		`iifname != "lo" ip saddr 127.0.0.0/8 drop`,
		`iifname "` + podLinks + `*" ` + nftSpoofed,
		"ip saddr " + facts.PodCIDR.String() + " " + nftSpoofed,
	}
	if facts.TunnelLink != "" {
		chains[nftPreRouted] = append(chains[nftPreRouted], `iifname "`+facts.TunnelLink+`" `+nftSpoofed)
	}
	tunnel := fmt.Sprintf("udp dport %d", tunnelPort)
	chains["filter-input"] = append([]string{
		`iifname != "lo" ip daddr 127.0.0.0/8 jump ` + nftGuard,
		"ip saddr " + cluster + " " + tunnel + " drop",
		tunnel + " ip saddr vmap @" + nftNodes,
		tunnel + " jump " + nftNoTunnel,
	}, chains["filter-input"]...)
	chains[nftGuard] = []string{"ct state established,related return", "ct status dnat return", "drop"}
	chains[nftNoTunnel] = []string{}
	chains["filter-forward"] = append([]string{
		"ip saddr " + cluster + " ip daddr != " + cluster + " " + tunnel + " drop",
		"ip daddr != " + cluster + " " + tunnel + " ct status dnat drop",
	}, chains["filter-forward"]...)
}

// SetNode implements Filter. Accepted means here only that this table has no
// objection.
func (n *NFTables) SetNode(name string, addr netip.Addr) {
	owner := "node/" + name
	if !addr.Is4() {
		n.set(owner, nil)
		return
	}
	f := newNFTFragment()
	f.lead(nftNodes, "accept", addr.String())
	n.set(owner, f)
}

// NodesKnown implements Filter.
func (n *NFTables) NodesKnown() {
	n.chains[nftNoTunnel] = []string{"drop"}
	n.touchedChains[nftNoTunnel] = true
}
