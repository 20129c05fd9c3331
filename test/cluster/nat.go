package cluster

import (
	"errors"
	"fmt"
)

// MoveBehindNAT puts a node that has not been started on a private network
// behind a router, which translates its address: it reaches all others, and
// none of them reaches it. The returned function removes the router.
func (n *Node) MoveBehindNAT() (remove func() error, err error) {
	const inner, outer = "192.168.99.1", "192.168.99.2"
	i := n.network.nodes.Add(1)
	router := fmt.Sprintf("orch-nat-%s-%d", n.network.id, i)
	if err := n.network.connect(router, fmt.Sprintf("v%d", i), fmt.Sprintf("10.99.0.%d", 10+i)); err != nil {
		return nil, err
	}
	in := "nsenter --net=/run/netns/" + router + " "
	err = run(
		n.inside("ip link del eth0"),
		"ip -n "+router+" link add inner type veth peer name eth0 netns "+n.Namespace,
		"ip -n "+router+" addr add "+inner+"/24 dev inner",
		"ip -n "+router+" link set inner up",
		n.inside("ip addr add "+outer+"/24 dev eth0"),
		n.inside("ip link set eth0 up"),
		n.inside("ip route add default via "+inner),
		in+"sysctl -qw net.ipv4.ip_forward=1",
		in+"iptables -w -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
		in+"iptables -w -A FORWARD -i eth0 -m conntrack --ctstate NEW -j DROP",
	)
	n.IP, n.Args = outer, append(n.Args, "--node-ip", outer)
	n.router, n.routerIP = router, fmt.Sprintf("10.99.0.%d", 10+i)
	remove = func() error { return run("ip netns del " + router) }
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return remove, nil
}

// Publish makes the router of a node behind NAT pass connections to its own TCP
// port on to the node's, and gives the router's address.
func (n *Node) Publish(port int) (ip string, err error) {
	in := "nsenter --net=/run/netns/" + n.router + " iptables -w "
	return n.routerIP, run(
		fmt.Sprintf("%s-t nat -A PREROUTING -i eth0 -p tcp --dport %d -j DNAT --to-destination %s:%d", in, port, n.IP, port),
		fmt.Sprintf("%s-I FORWARD -i eth0 -p tcp -d %s --dport %d -j ACCEPT", in, n.IP, port),
	)
}
