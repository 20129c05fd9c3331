package netproxy

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/podnet"
	"orch/netproxy/overlay"
	"orch/netproxy/wire"
)

// hostEnd is the hardware address of the node's end of every pod's link.
var hostEnd = net.HardwareAddr{0x0e, 0x6f, 0x72, 0x63, 0x68, 0x01}

// datagram is an IPv4 packet with UDP, whatever its source says.
func datagram(from, to netip.AddrPort, data string) []byte {
	p := make([]byte, 28, 28+len(data))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(data)))
	copy(p[12:16], from.Addr().AsSlice())
	copy(p[16:20], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(data)))
	return append(p, data...)
}

// inject sends a packet from a pod's link, as a program with NET_RAW can.
func (p *pod) inject(packet []byte) {
	p.node.t.Helper()
	p.node.inject(p.ns, hostEnd, packet)
}

// inject sends a packet by eth0 of a namespace to a neighbour's hardware address.
func (n *node) inject(from netns.NsHandle, to net.HardwareAddr, packet []byte) {
	n.t.Helper()
	n.in(from, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		must(n.t, err)
		defer unix.Close(fd)
		link, err := net.InterfaceByName("eth0")
		must(n.t, err)
		address := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Index, Halen: 6} // ETH_P_IP, network order
		copy(address.Addr[:], to)
		must(n.t, unix.Sendto(fd, packet, 0, address))
	})
}

// heard is a UDP socket, and what came in.
func (n *node) heard(ns netns.NsHandle, address string) <-chan string {
	n.t.Helper()
	var socket net.PacketConn
	n.in(ns, func() {
		var err error
		socket, err = net.ListenPacket("udp4", address)
		must(n.t, err)
	})
	n.t.Cleanup(func() { socket.Close() })
	all := make(chan string, 100)
	go func() {
		buffer := make([]byte, 2000)
		for {
			count, _, err := socket.ReadFrom(buffer)
			if err != nil {
				return
			}
			all <- string(buffer[:count])
		}
	}()
	return all
}

// next is what comes in first; packets on one way keep their order.
func next(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case text := <-from:
		return text
	case <-time.After(10 * time.Second):
		return "nothing"
	}
}

func TestGuard(t *testing.T)          { testGuard(t) }
func TestGuardNFTables(t *testing.T)  { testGuard(t) }
func TestGuardUserspace(t *testing.T) { testGuard(t) }

// testGuard is a pod that tries what it may not.
func testGuard(t *testing.T) {
	t.Helper()
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	n.stop()
	peers := newPeerFeed(podnet.Update{Whole: true, Peers: map[string]podnet.Peer{
		"node-1": {Addr: nodeIP, Range: netip.MustParsePrefix("10.42.0.0/24")},
	}})
	n.alter = func(c *Config) { c.Peers = peers.open }
	n.start()
	defer func() { n.stop() }()
	bad, victim, other := n.addPod("bad"), n.addPod("victim"), n.addPod("other")
	self := here(t)
	port := func(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

	t.Run("other addresses", func(t *testing.T) {
		heard := n.heard(victim.ns, ":7000")
		uplink, err := net.InterfaceByName("eth0")
		must(t, err)
		n.inject(n.outside, uplink.HardwareAddr, datagram(port(other.ip, 1), port(victim.ip, 7000), "from outside as a pod"))
		for _, from := range []netip.Addr{other.ip, outsideIP, nodeIP, gatewayIP, netip.MustParseAddr("10.42.7.7"), netip.MustParseAddr("127.0.0.1")} {
			bad.inject(datagram(port(from, 1), port(victim.ip, 7000), "as "+from.String()))
		}
		bad.inject(datagram(port(bad.ip, 1), port(victim.ip, 7000), "as itself"))
		if got := next(t, heard); got != "as itself" {
			t.Errorf("a packet came through: %s", got)
		}
	})
	t.Run("loopback of the node", func(t *testing.T) {
		heard := n.heard(self, "127.0.0.1:7001")
		loopback := netip.MustParseAddr("127.0.0.1")
		for _, from := range []netip.Addr{bad.ip, loopback, netip.MustParseAddr("127.8.8.8"), nodeIP} {
			bad.inject(datagram(port(from, 7002), port(loopback, 7001), "as "+from.String()))
		}
		uplink, err := net.InterfaceByName("eth0")
		must(t, err)
		for _, from := range []netip.Addr{outsideIP, loopback, nodeIP, bad.ip} {
			n.inject(n.outside, uplink.HardwareAddr, datagram(port(from, 7002), port(loopback, 7001), "from outside as "+from.String()))
		}
		conn, err := net.Dial("udp4", "127.0.0.1:7001")
		must(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("the node"))
		must(t, err)
		if got := next(t, heard); got != "the node" {
			t.Errorf("a packet came through: %s", got)
		}
	})
	t.Run("tunnel", func(t *testing.T) { n.testTunnel(t, bad, peers) })
}

// testTunnel has a pod, and a machine that is no node, speak VXLAN.
func (n *node) testTunnel(t *testing.T, bad *pod, peers *peerFeed) {
	outside := n.heard(n.outside, ":8472")
	n.in(n.outside, func() {
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		other, _ := netlink.ParseAddr("192.168.77.3/24")
		must(t, netlink.AddrAdd(link, other))
	})
	if n.mode() != ModeUserspace { // nothing of a pod gets out there
		bad.inject(datagram(netip.AddrPortFrom(bad.ip, 9), netip.AddrPortFrom(outsideIP, 8472), "VXLAN from a pod"))
		conn, err := net.Dial("udp4", outsideIP.String()+":8472") // of the node itself
		must(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("control"))
		must(t, err)
		if got := next(t, outside); got != "control" {
			t.Errorf("a pod sends as the node: %s", got)
		}
	}
	peers.tell(podnet.Update{Peers: map[string]podnet.Peer{"node-2": {Addr: outsideIP, Range: netip.MustParsePrefix("10.42.1.0/24")}}})
	frame := "\x08\x00\x00\x00\x00\x00\x01\x00" + // VXLAN, identifier 1
		"\x0e\x76" + string(nodeIP.AsSlice()) + "\x0e\x76" + string(outsideIP.AsSlice()) + "\x08\x00" +
		string(datagram(netip.MustParseAddrPort("10.42.1.5:5"), netip.AddrPortFrom(bad.ip, 5), "hello"))
	heard := n.heard(bad.ns, ":5")
	tunnel := netip.AddrPortFrom(nodeIP, 8472)
	deadline := time.Now().Add(20 * time.Second)
	for { // the link comes with the other node
		n.outsideSends(outsideIP, tunnel, frame)
		select {
		case got := <-heard:
			if got != "hello" {
				t.Errorf("through the tunnel came %q", got)
			}
		case <-time.After(200 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("nothing came through the tunnel")
			}
			continue
		}
		break
	}
	drain(heard)
	stranger := strings.Replace(frame, "hello", "STOLE", 1)
	n.outsideSends(netip.MustParseAddr("192.168.77.3"), tunnel, stranger)
	bad.inject(datagram(netip.AddrPortFrom(bad.ip, 9), tunnel, stranger))
	bad.inject(datagram(netip.AddrPortFrom(outsideIP, 9), tunnel, stranger))
	// Who is a node may not speak for others' pods either.
	n.outsideSends(outsideIP, tunnel, strings.Replace(frame, string([]byte{10, 42, 1, 5, 10, 42}), string([]byte{10, 42, 0, 3, 10, 42}), 1))
	n.outsideSends(outsideIP, tunnel, strings.Replace(frame, "hello", "after", 1))
	for got := next(t, heard); got != "after"; got = next(t, heard) {
		if got != "hello" {
			t.Errorf("through the tunnel came %q", got)
			break
		}
	}
	if _, err := netlink.LinkByName(overlay.LinkName); err != nil {
		t.Error(err)
	}
}

func drain(from <-chan string) {
	for {
		select {
		case <-from:
		case <-time.After(300 * time.Millisecond):
			return
		}
	}
}

// outsideSends has the neighbour send a datagram from one of its addresses.
func (n *node) outsideSends(from netip.Addr, to netip.AddrPort, data string) {
	n.t.Helper()
	n.in(n.outside, func() {
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: from.AsSlice()}, net.UDPAddrFromAddrPort(to))
		must(n.t, err)
		defer conn.Close()
		_, err = conn.Write([]byte(data))
		must(n.t, err)
	})
}

// peerFeed is a server that tells of nodes.
type peerFeed struct {
	mu    sync.Mutex // guards what follows
	lines []podnet.Update
	pipes []*io.PipeWriter
}

func newPeerFeed(first podnet.Update) *peerFeed { return &peerFeed{lines: []podnet.Update{first}} }

func (f *peerFeed) open(ctx context.Context) (io.ReadCloser, error) {
	from, to := io.Pipe()
	context.AfterFunc(ctx, func() { to.CloseWithError(ctx.Err()) })
	f.mu.Lock()
	defer f.mu.Unlock()
	known := append([]podnet.Update(nil), f.lines...)
	f.pipes = append(f.pipes, to)
	go func() {
		for _, u := range known {
			_ = json.NewEncoder(to).Encode(u)
		}
	}()
	return from, nil
}

func (f *peerFeed) tell(u podnet.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, u)
	for _, to := range f.pipes {
		_ = json.NewEncoder(to).Encode(u)
	}
}

func TestReserved(t *testing.T)          { testReserved(t) }
func TestReservedNFTables(t *testing.T)  { testReserved(t) }
func TestReservedUserspace(t *testing.T) { testReserved(t) }

// testReserved has services and pods ask for what is the servers' and the nodes'.
func testReserved(t *testing.T) {
	t.Helper()
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	n.stop()
	peers := newPeerFeed(podnet.Update{Whole: true, Peers: map[string]podnet.Peer{
		"node-1": {Addr: nodeIP, Range: netip.MustParsePrefix("10.42.0.0/24")},
		"node-2": {Addr: outsideIP, Range: netip.MustParsePrefix("10.42.1.0/24")},
	}})
	events := make(chan string, 100)
	n.alter = func(c *Config) {
		c.Peers = peers.open
		c.Report = func(o *corev1.ObjectReference, kind, reason, message string) {
			events <- o.Kind + "/" + o.Name + " " + kind + " " + reason + " " + message
		}
	}
	n.start()
	defer func() { n.stop() }()
	thief, client := n.addPod("thief"), n.addPod("client")
	thief.serve(8080)
	self := here(t)
	n.serveAt(self, "api", nodeIP.String()+":6443")
	n.serve(n.outside, "node-2", 6443)
	n.apiAt(nodeIP, 6443)

	n.service("thief", "10.43.0.50", func(s *corev1.Service) {
		s.Spec.Ports[0].Port = 6443
		s.Spec.ExternalIPs = []string{nodeIP.String(), outsideIP.String(), "10.43.0.1", "203.0.113.9"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: nodeIP.String()}}
	}, thief)
	n.expect(client.ns, "tcp", nodeIP.String()+":6443", "api", anyone)
	n.expect(self, "tcp", nodeIP.String()+":6443", "api", anyone)
	n.expect(n.outside, "tcp", nodeIP.String()+":6443", "api", anyone)
	n.expect(self, "tcp", outsideIP.String()+":6443", "node-2", anyone)
	n.expect(client.ns, "tcp", "203.0.113.9:6443", "thief", anyone) // what is free may be had
	want := fmt.Sprintf("Service/thief Warning AddressNotAllowed not served, as it belongs to the cluster itself: 10.43.0.1:6443/tcp, %s:6443/tcp, %s:6443/tcp, %s:6443/tcp", nodeIP, outsideIP, nodeIP)
	if got := next(t, events); !strings.HasPrefix(got, want) {
		t.Errorf("event: %s\nwant:  %s", got, want)
	}
	for _, taken := range []wire.PortMapping{{HostPort: 6443, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 8472, ContainerPort: 8080, Protocol: "udp"}} {
		ns := n.namespace(fmt.Sprint("taker-", taken.HostPort))
		response, err := n.call("ADD", fmt.Sprint("taker-", taken.HostPort), taken)
		must(t, err)
		if response.Error == nil || !strings.Contains(response.Error.Msg, "is not for pods") {
			t.Errorf("a pod was given port %d: %v", taken.HostPort, response.Error)
		}
		must(t, ns.Close())
	}
	// When a server moves away its old address is free.
	n.apiAt(netip.MustParseAddr("192.168.77.9"), 16443)
	n.settle()
	if n.mode() != ModeUserspace { // there it is whoever listens
		n.expect(client.ns, "tcp", nodeIP.String()+":6443", "thief", anyone)
	}
}

// apiAt tells where the API's servers are.
func (n *node) apiAt(addr netip.Addr, port int32) {
	n.t.Helper()
	name, proto := "https", corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr.String()}}},
	}
	slices := n.client.DiscoveryV1().EndpointSlices("default")
	_, err := slices.Create(context.Background(), slice, metav1.CreateOptions{})
	if err != nil {
		_, err = slices.Update(context.Background(), slice, metav1.UpdateOptions{})
	}
	must(n.t, err)
}
