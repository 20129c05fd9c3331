package netproxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"orch/netproxy/wire"
)

const insideEnv = "ORCH_TEST_INSIDE"

// node is a machine of the test's own: this process in a network and mount
// namespace that vanish with it, an uplink to a neighbour "outside", and a Proxy.
type node struct {
	t       testing.TB
	dataDir string
	outside netns.NsHandle
	client  kubernetes.Interface
	proxy   *Proxy
	stop    func()

	resolvConf string
	alter      func(*Config) // nil: nothing
}

var (
	nodeIP    = netip.MustParseAddr("192.168.77.1")
	outsideIP = netip.MustParseAddr("192.168.77.2")
	dnsIP     = netip.MustParseAddr("10.43.0.10")
)

// isolated runs the calling test again in namespaces of its own and reports
// its outcome; it returns true in that second run.
func isolated(t testing.TB) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	selection := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=120s"}
	if _, isBenchmark := t.(*testing.B); isBenchmark {
		selection = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$", "-test.benchtime=300x"}
	}
	cmd := exec.Command("/proc/self/exe", selection...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("inside: %v\n%s", err, out)
	}
	if _, isBenchmark := t.(*testing.B); isBenchmark || testing.Verbose() {
		t.Logf("%s", out)
	}
	return false
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNode sets up the machine and starts a Proxy on it.
func newNode(t testing.TB, client kubernetes.Interface) *node {
	t.Helper()
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	if client == nil {
		client = emptyCluster()
	}
	n := &node{t: t, dataDir: t.TempDir(), client: client}
	n.outside = n.namespace("outside")
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1400, TxQLen: -1, Flags: net.FlagUp},
		PeerName: "eth0", PeerNamespace: netlink.NsFd(int(n.outside))}
	must(t, netlink.LinkAdd(uplink))
	addr, _ := netlink.ParseAddr(nodeIP.String() + "/24")
	must(t, netlink.AddrAdd(uplink, addr))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Index, Gw: outsideIP.AsSlice()}))
	n.in(n.outside, func() {
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		addr, _ := netlink.ParseAddr(outsideIP.String() + "/24")
		must(t, netlink.AddrAdd(link, addr))
		must(t, netlink.LinkSetUp(link))
	})
	n.start()
	return n
}

func emptyCluster() kubernetes.Interface { return fake.NewClientset() }

func (n *node) config() Config {
	config := Config{
		DataDir: n.dataDir, NodeName: "node-1", NodeIP: nodeIP,
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		PodCIDR: func(context.Context) (netip.Prefix, error) { return netip.MustParsePrefix("10.42.0.0/24"), nil },
		Mode:    n.mode(), Peers: noPeers, ResolvConf: n.resolvConf, ClusterDNS: dnsIP, Client: n.client, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if n.alter != nil {
		n.alter(&config)
	}
	return config
}

// noPeers is a server that never tells of other nodes.
func noPeers(ctx context.Context) (io.ReadCloser, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// mode is the proxy's, told by the test's name.
func (n *node) mode() string {
	switch {
	case strings.Contains(n.t.Name(), "NFTables"):
		return ModeNFTables
	case strings.Contains(n.t.Name(), "Userspace"):
		return ModeUserspace
	}
	return ModeIPTables
}

// start runs a new Proxy over whatever the machine holds.
func (n *node) start() {
	n.t.Helper()
	n.proxy = New(n.config())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.proxy.Run(ctx) }()
	n.stop = func() { cancel(); must(n.t, <-done) }
	select {
	case <-n.proxy.Ready():
	case err := <-done:
		n.t.Fatalf("run: %v", err)
	case <-time.After(20 * time.Second):
		n.t.Fatal("not ready")
	}
}

// namespace makes a named network namespace.
func (n *node) namespace(name string) netns.NsHandle {
	n.t.Helper()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	here, err := netns.Get()
	must(n.t, err)
	ns, err := netns.NewNamed(name)
	must(n.t, err)
	must(n.t, netns.Set(here))
	return ns
}

// in calls f on a thread inside ns; sockets made there stay there.
func (n *node) in(ns netns.NsHandle, f func()) {
	n.t.Helper()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	here, err := netns.Get()
	must(n.t, err)
	must(n.t, netns.Set(ns))
	f()
	must(n.t, netns.Set(here))
}

type pod struct {
	node *node
	name string
	ns   netns.NsHandle
	ip   netip.Addr
}

// call sends one CNI call to the agent.
func (n *node) call(command, id string, ports ...wire.PortMapping) (*wire.Response, error) {
	socket := filepath.Join(n.dataDir, "agent", "cni.sock")
	config, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "orch", "type": "orch-cni", "socket": socket,
		"runtimeConfig": map[string]any{"portMappings": ports}})
	conn, err := wire.Dial(socket, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	request := wire.Request{Command: command, ContainerID: id, NetNS: "/run/netns/" + id, IfName: "eth0",
		Args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id, Config: config}
	if err := json.NewEncoder(conn).Encode(&request); err != nil {
		return nil, err
	}
	response := new(wire.Response)
	return response, json.NewDecoder(conn).Decode(response)
}

// addPod makes a sandbox and attaches it.
func (n *node) addPod(name string, ports ...wire.PortMapping) *pod {
	n.t.Helper()
	p := &pod{node: n, name: name, ns: n.namespace(name)}
	response, err := n.call("ADD", name, ports...)
	must(n.t, err)
	if response.Error != nil {
		n.t.Fatalf("ADD %s: %v", name, response.Error)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	must(n.t, json.Unmarshal(response.Result, &result))
	p.ip = result.IPs[0].Address.Addr()
	return p
}

// remove detaches the pod and deletes its sandbox.
func (p *pod) remove() {
	p.node.t.Helper()
	response, err := p.node.call("DEL", p.name)
	must(p.node.t, err)
	if response.Error != nil {
		p.node.t.Fatalf("DEL %s: %v", p.name, response.Error)
	}
	p.ns.Close()
	must(p.node.t, netns.DeleteNamed(p.name))
}

// serve answers "name remote-address" on a TCP and UDP port of the pod.
func (p *pod) serve(port int) { p.node.serve(p.ns, p.name, port) }

func (n *node) serve(ns netns.NsHandle, name string, port int) {
	n.t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	n.in(ns, func() {
		var err error
		listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		must(n.t, err)
		packets, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		must(n.t, err)
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "%s %s", name, conn.RemoteAddr())
			conn.Close()
		}
	}()
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(fmt.Appendf(nil, "%s %s", name, from), from)
		}
	}()
	n.t.Cleanup(func() { listener.Close(); packets.Close() })
}

func here(t testing.TB) netns.NsHandle {
	ns, err := netns.Get()
	must(t, err)
	return ns
}

// ask connects from ns and returns who answered and how it saw the client.
func (n *node) ask(ns netns.NsHandle, network, address string, from ...netip.Addr) (name string, client netip.Addr, err error) {
	n.t.Helper()
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if len(from) > 0 {
		if network == "udp" {
			dialer.LocalAddr = &net.UDPAddr{IP: from[0].AsSlice()}
		} else {
			dialer.LocalAddr = &net.TCPAddr{IP: from[0].AsSlice()}
		}
	}
	var conn net.Conn
	n.in(ns, func() { conn, err = dialer.Dial(network, address) })
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer conn.Close()
	return exchange(conn)
}

func exchange(conn net.Conn) (name string, client netip.Addr, err error) {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	var answer []byte
	if conn.LocalAddr().Network() == "udp" {
		if _, err = conn.Write([]byte("who")); err != nil {
			return "", netip.Addr{}, err
		}
		answer = make([]byte, 100)
		var count int
		count, err = conn.Read(answer)
		answer = answer[:count]
	} else {
		answer, err = io.ReadAll(conn)
	}
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, remote, _ := strings.Cut(string(answer), " ")
	peer, err := netip.ParseAddrPort(remote)
	return name, peer.Addr(), err
}

// expect asks and checks who answers and, if client is valid, as whom it is seen.
func (n *node) expect(ns netns.NsHandle, network, address, name string, client netip.Addr) {
	n.t.Helper()
	got, seen, err := n.ask(ns, network, address)
	if err != nil || got != name || (client.IsValid() && seen != client) {
		n.t.Errorf("%s %s: answered by %q, client seen as %s, error %v; want %q, %s", network, address, got, seen, err, name, client)
	}
}

// saved is the machine's rules in a form to compare: sorted, counters left out.
func (n *node) saved() string {
	if n.mode() == ModeNFTables {
		// Maps with their elements, of sets the names alone: they remember clients.
		out, err := exec.Command("sh", "-c", "nft -s list table ip orch >/dev/null 2>&1 && (nft -s -t list table ip orch; for m in service-ips host-ips host-ports node-ports refused-ips refused-ports; do nft -s list map ip orch $m; done) | sort; true").Output()
		must(n.t, err)
		return string(out)
	}
	out, err := exec.Command("sh", "-c", "(iptables-save -t nat; iptables-save -t filter) | grep -v '^#' | sed 's/\\[.*//' | sort").Output()
	must(n.t, err)
	return string(out)
}

func podAddress(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, last}) }
