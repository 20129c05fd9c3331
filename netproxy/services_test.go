package netproxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/netproxy/wire"
)

var anyone netip.Addr // when it does not matter as whom a client is seen

var markers int

// service creates a service with one TCP and one UDP port 80 to port 8080 of
// the pods, and waits until its rules are in force.
func (n *node) service(name, clusterIP string, change func(*corev1.Service), pods ...*pod) {
	n.t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "web-udp", Protocol: corev1.ProtocolUDP, Port: 80}}},
	}
	if change != nil {
		change(service)
	}
	ctx := context.Background()
	_, err := n.client.CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{})
	must(n.t, err)
	_, err = n.client.DiscoveryV1().EndpointSlices("default").Create(ctx, endpointSlice(name, pods...), metav1.CreateOptions{})
	must(n.t, err)
	n.settle()
}

func endpointSlice(service string, pods ...*pod) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		name, port := "web", int32(8080)
		if protocol == corev1.ProtocolUDP {
			name = "web-udp"
		}
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port})
	}
	nodeName := "node-1"
	for _, p := range pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.ip.String()}, NodeName: &nodeName})
	}
	return slice
}

func (n *node) setEndpoints(service string, pods ...*pod) {
	n.t.Helper()
	_, err := n.client.DiscoveryV1().EndpointSlices("default").Update(context.Background(), endpointSlice(service, pods...), metav1.UpdateOptions{})
	must(n.t, err)
	n.settle()
}

// settle waits until what was written before it is in force: the store
// delivers in order per resource, so a marker service and a marker slice
// follow everything earlier, and their rule shows in the kernel.
func (n *node) settle() {
	n.t.Helper()
	ctx := context.Background()
	markers++
	name := fmt.Sprintf("marker-%d", markers)
	seen := make(chan struct{}, 16)
	n.proxy.store.OnChange(func(of types.NamespacedName) {
		if of.Name == name {
			seen <- struct{}{}
		}
	})
	_, err := n.client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: "None"}}, metav1.CreateOptions{})
	must(n.t, err)
	_, err = n.client.DiscoveryV1().EndpointSlices("default").Create(ctx, endpointSlice(name), metav1.CreateOptions{})
	must(n.t, err)
	for range 2 {
		select {
		case <-seen:
		case <-time.After(30 * time.Second):
			n.t.Fatal("the store does not follow")
		}
	}
	must(n.t, n.proxy.engine.Flush(ctx))
}

func TestServices(t *testing.T)         { testServices(t) }
func TestServicesNFTables(t *testing.T) { testServices(t) }

func testServices(t *testing.T) {
	t.Helper()
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	a, b, client := n.addPod("pod-a"), n.addPod("pod-b"), n.addPod("client")
	a.serve(8080)
	b.serve(8080)
	self := here(t)

	n.service("one", "10.43.0.100", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30080
		s.Spec.ExternalIPs = []string{"203.0.113.7"}
	}, a)
	for _, network := range []string{"tcp", "udp"} {
		n.expect(client.ns, network, "10.43.0.100:80", "pod-a", client.ip)
		n.expect(self, network, "10.43.0.100:80", "pod-a", anyone)
		n.expect(a.ns, network, "10.43.0.100:80", "pod-a", nodeIP) // hairpin
		n.expect(n.outside, network, nodeIP.String()+":30080", "pod-a", nodeIP)
		n.expect(client.ns, network, nodeIP.String()+":30080", "pod-a", anyone)
		n.expect(self, network, nodeIP.String()+":30080", "pod-a", anyone)
		n.expect(self, network, "127.0.0.1:30080", "pod-a", anyone)
		n.expect(client.ns, network, "203.0.113.7:80", "pod-a", anyone)
	}

	t.Run("balances", func(t *testing.T) {
		n.setEndpoints("one", a, b)
		counts := make(map[string]int)
		for range 60 {
			name, _, err := n.ask(client.ns, "tcp", "10.43.0.100:80")
			must(t, err)
			counts[name]++
		}
		if counts["pod-a"] < 10 || counts["pod-b"] < 10 {
			t.Errorf("answers by pod: %v", counts)
		}
	})
	t.Run("affinity", func(t *testing.T) { n.stick(client, a, b) })
	t.Run("without endpoints", func(t *testing.T) {
		n.service("empty", "10.43.0.102", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
			s.Spec.Ports[0].NodePort = 30082
		})
		for _, ns := range []netns.NsHandle{client.ns, self} {
			for _, address := range []string{"10.43.0.102:80", nodeIP.String() + ":30082"} {
				start := time.Now()
				if _, _, err := n.ask(ns, "tcp", address); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(start) > time.Second {
					t.Errorf("%s: %v after %s", address, err, time.Since(start))
				}
			}
		}
	})
	t.Run("udp endpoint replaced", func(t *testing.T) { n.replaceEndpoint(client, a, b) })
	t.Run("external traffic policy Local", func(t *testing.T) {
		n.service("local", "10.43.0.103", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.Ports[0].NodePort = 30083
			s.Spec.HealthCheckNodePort = 30084
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}, a)
		n.expect(n.outside, "tcp", nodeIP.String()+":30083", "pod-a", outsideIP)
		n.expectHealth(30084, http.StatusOK) // with a local endpoint
		ending := endpointSlice("local", a)
		ending.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		_, err := n.client.DiscoveryV1().EndpointSlices("default").Update(context.Background(), ending, metav1.UpdateOptions{})
		must(t, err)
		n.settle()
		n.expectHealth(30084, http.StatusServiceUnavailable) // send no more, though what comes is served
		n.expect(n.outside, "tcp", nodeIP.String()+":30083", "pod-a", outsideIP)
		n.setEndpoints("local")
		n.expectHealth(30084, http.StatusServiceUnavailable)
	})
	t.Run("deleted", func(t *testing.T) {
		before := n.saved()
		n.service("gone", "10.43.0.104", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, a, b)
		if n.saved() == before {
			t.Error("no rules for the service")
		}
		must(t, n.client.CoreV1().Services("default").Delete(context.Background(), "gone", metav1.DeleteOptions{}))
		n.settle()
		if after := n.saved(); after != before {
			t.Errorf("rules left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
	t.Run("restart", func(t *testing.T) {
		n.setEndpoints("one", a, b)
		before := n.saved()
		first, _, err := n.ask(client.ns, "tcp", "10.43.0.101:80")
		must(t, err)
		n.stop()
		n.expect(client.ns, "tcp", "10.43.0.101:80", first, anyone)
		n.start()
		n.expect(client.ns, "tcp", "10.43.0.101:80", first, anyone)
		if after := n.saved(); after != before {
			t.Errorf("rules differ after a restart:\n%s\nbefore:\n%s", after, before)
		}
	})
	t.Run("flushed by another program", func(t *testing.T) {
		if out, err := exec.Command("iptables", "--version").Output(); err != nil || !strings.Contains(string(out), "nf_tables") {
			t.Skip("the kernel tells of changes by nftables alone")
		}
		before := n.saved()
		if n.mode() == ModeNFTables {
			must(t, exec.Command("nft", "flush", "ruleset").Run())
		} else {
			must(t, exec.Command("iptables", "-t", "nat", "-F").Run())
			must(t, exec.Command("iptables", "-t", "filter", "-D", "FORWARD", "-j", "ORCH-FORWARD").Run())
		}
		for start := time.Now(); n.saved() != before; {
			if time.Since(start) > 10*time.Second {
				t.Fatal("not restored")
			}
		}
	})
	t.Run("cleanup", func(t *testing.T) {
		n.stop()
		must(t, Cleanup(context.Background(), "orch0"))
		if saved := n.saved(); strings.Contains(saved, "ORCH") || n.mode() == ModeNFTables && saved != "" {
			t.Errorf("rules left behind:\n%s", saved)
		}
		n.stop = func() {}
	})
}

// stick makes service "sticky", whose client stays with its first endpoint.
func (n *node) stick(client, a, b *pod) {
	n.t.Helper()
	n.service("sticky", "10.43.0.101", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, a, b)
	first, _, err := n.ask(client.ns, "tcp", "10.43.0.101:80")
	must(n.t, err)
	for range 20 {
		n.expect(client.ns, "tcp", "10.43.0.101:80", first, anyone)
	}
}

// replaceEndpoint gives service "one" another endpoint each time and asks it from
// one and the same UDP socket.
func (n *node) replaceEndpoint(client, a, b *pod) {
	n.t.Helper()
	n.setEndpoints("one", a)
	var conn net.Conn
	n.in(client.ns, func() {
		var err error
		conn, err = net.Dial("udp", "10.43.0.100:80")
		must(n.t, err)
	})
	defer conn.Close()
	for _, p := range []*pod{a, b, a} {
		n.setEndpoints("one", p)
		if name, _, err := exchange(conn); err != nil || name != p.name {
			n.t.Errorf("answered by %q, %v; want %s", name, err, p.name)
		}
	}
}

// expectHealth asks until the answer is the one that is wanted: it follows the
// rules, which may work a moment before.
func (n *node) expectHealth(port, want int) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(5 * time.Millisecond) {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		must(n.t, err)
		response.Body.Close()
		if response.StatusCode == want {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("health answers %d, want %d", response.StatusCode, want)
		}
	}
}

func TestHostPorts(t *testing.T)         { testHostPorts(t) }
func TestHostPortsNFTables(t *testing.T) { testHostPorts(t) }

func testHostPorts(t *testing.T) {
	t.Helper()
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	client, self := n.addPod("client"), here(t)
	bare := n.saved()
	a := n.addPod("pod-a", wire.PortMapping{HostPort: 8081, ContainerPort: 8080, Protocol: "TCP"}, wire.PortMapping{HostPort: 8081, ContainerPort: 8080, Protocol: "UDP"})
	b := n.addPod("pod-b", wire.PortMapping{HostPort: 8082, ContainerPort: 8080, Protocol: "TCP", HostIP: "127.0.0.1"})
	c := n.addPod("pod-c", wire.PortMapping{HostPort: 8082, ContainerPort: 8080, Protocol: "TCP", HostIP: nodeIP.String()})
	for _, p := range []*pod{a, b, c} {
		p.serve(8080)
	}
	check := func() {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			n.expect(n.outside, network, nodeIP.String()+":8081", "pod-a", outsideIP)
			n.expect(client.ns, network, nodeIP.String()+":8081", "pod-a", client.ip)
			n.expect(a.ns, network, nodeIP.String()+":8081", "pod-a", anyone)
			n.expect(self, network, nodeIP.String()+":8081", "pod-a", anyone)
			n.expect(self, network, "127.0.0.1:8081", "pod-a", anyone)
		}
		n.expect(self, "tcp", "127.0.0.1:8082", "pod-b", anyone)
		// As the conformance suite asks: the loopback address, from the node's own.
		if name, _, err := n.ask(self, "tcp", "127.0.0.1:8082", nodeIP); name != "pod-b" {
			t.Errorf("from the node address: answered by %q, %v", name, err)
		}
		n.expect(n.outside, "tcp", nodeIP.String()+":8082", "pod-c", outsideIP)
	}
	check()

	n.namespace("pod-d")
	response, err := n.call("ADD", "pod-d", wire.PortMapping{HostPort: 8082, ContainerPort: 8080, Protocol: "TCP"})
	must(t, err)
	if response.Error == nil || !strings.Contains(response.Error.Msg, "in use") {
		t.Errorf("a taken host port was given again: %v", response.Error)
	}

	before := n.saved()
	n.stop()
	n.start()
	if after := n.saved(); after != before {
		t.Errorf("rules differ after a restart:\n%s\nbefore:\n%s", after, before)
	}
	check()
	for _, p := range []*pod{a, b, c} {
		p.remove()
	}
	must(t, n.proxy.engine.Flush(context.Background()))
	if after := n.saved(); after != bare {
		t.Errorf("rules left behind:\n%s\nbefore:\n%s", after, bare)
	}
}

// TestLeaks kills sandboxes behind the agent's back and checks that the next
// start leaves nothing of them, and that living ones are untouched.
func TestLeaks(t *testing.T) {
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	kept, gone := n.addPod("kept"), n.addPod("gone", wire.PortMapping{HostPort: 8081, ContainerPort: 8080, Protocol: "tcp"})
	kept.serve(8080)
	bare := n.links()
	n.stop()
	gone.ns.Close()
	must(t, netns.DeleteNamed("gone"))
	stray := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vethstray", HardwareAddr: net.HardwareAddr{0x0e, 0x6f, 0x72, 0x63, 0x68, 0x01}}, PeerName: "straypeer"}
	must(t, netlink.LinkAdd(stray))
	n.start()
	if links := n.links(); len(links) != len(bare)-1 {
		t.Errorf("links after the start: %v, before: %v", links, bare)
	}
	records, _ := filepath.Glob(filepath.Join(n.dataDir, "agent/cni/sandboxes/*.json"))
	if len(records) != 1 {
		t.Errorf("records: %v", records)
	}
	if saved := n.saved(); strings.Contains(saved, "8081") {
		t.Errorf("host port left behind:\n%s", saved)
	}
	n.expect(here(t), "tcp", kept.ip.String()+":8080", "kept", gatewayIP)
	if next := n.addPod("next"); next.ip.Compare(gone.ip) <= 0 {
		t.Errorf("address %s given again at once: %s", gone.ip, next.ip)
	}
}

func (n *node) links() []string {
	links, err := netlink.LinkList()
	must(n.t, err)
	var names []string
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names
}

// TestPlugin runs the real executable.
func TestPlugin(t *testing.T) {
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	binary := filepath.Join(t.TempDir(), "orch-cni")
	build := exec.Command("go", "build", "-o", binary, "./plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n.namespace("pod-x")
	list, err := os.ReadFile(filepath.Join(PluginConfDir(n.dataDir), "10-orch.conflist"))
	must(t, err)
	if !strings.Contains(string(list), `"type": "orch-cni"`) {
		t.Errorf("configuration list: %s", list)
	}
	config := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"orch","type":"orch-cni","socket":%q}`, filepath.Join(n.dataDir, "agent/cni.sock"))
	run := func(command string) (string, error) {
		cmd := exec.Command(binary)
		cmd.Stdin = strings.NewReader(config)
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=pod-x", "CNI_NETNS=/run/netns/pod-x", "CNI_IFNAME=eth0", "CNI_PATH=/"}
		out, err := cmd.Output()
		return string(out), err
	}
	for _, step := range []struct {
		command, want string
		fails         bool
	}{
		{"VERSION", `"supportedVersions":["1.0.0","1.1.0"]`, false},
		{"CHECK", `"code":3`, true},
		{"ADD", `"address":"10.42.0.2/32"`, false},
		{"ADD", `"address":"10.42.0.2/32"`, false},
		{"CHECK", "", false},
		{"STATUS", "", false},
		{"DEL", "", false},
		{"DEL", "", false},
		{"BAD", `unknown CNI_COMMAND`, true},
	} {
		out, err := run(step.command)
		if !strings.Contains(out, step.want) || (err != nil) != step.fails {
			t.Errorf("%s: %s, %v", step.command, out, err)
		}
	}
	n.stop()
	if out, err := run("DEL"); err == nil || !strings.Contains(out, `"code":11`) || !strings.Contains(out, "not running") {
		t.Errorf("DEL without an agent: %s, %v", out, err)
	}
}
