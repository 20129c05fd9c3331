package cases

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"orch/test/cluster"
)

// lab is a test of the network.
type lab struct{ *testing.T }

func (t lab) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually looks until ok gives no error.
func (t lab) eventually(ok func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; <-tick.C {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// agent gives an agent that has not been started.
func (t lab) agent(server *cluster.Node, args ...string) *cluster.Node {
	t.Helper()
	agent, err := server.Network().NewAgent(server, args...)
	t.must(err)
	t.Cleanup(func() { t.close(agent) })
	return agent
}

func (t lab) close(n *cluster.Node) {
	if t.Failed() {
		t.Logf("end of %s's log:\n%s", n.Name, n.LogTail())
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func (t lab) start(n *cluster.Node) {
	t.Helper()
	t.must(n.Start())
	t.must(n.WaitReady(t.Context()))
}

// inside runs commands in a node's network namespace.
func (t lab) inside(n *cluster.Node, command string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "sh", "-c", command)
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return out
}

func (t lab) kubectl(n *cluster.Node, args ...string) string {
	t.Helper()
	out, err := n.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (t lab) apply(n *cluster.Node, yaml string) {
	t.Helper()
	if out, err := n.KubectlInput(t.Context(), strings.NewReader(yaml), "apply", "-f", "-"); err != nil {
		t.Fatal(out)
	}
}

func (t lab) podIP(n *cluster.Node, pod string) string {
	t.Helper()
	t.kubectl(n, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=120s")
	return t.kubectl(n, "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
}

// packets listens by UDP as a program on the node does.
func (t lab) packets(n *cluster.Node, address string) (socket net.PacketConn) {
	t.Helper()
	t.must(n.In(func() (err error) {
		socket, err = net.ListenPacket("udp", address)
		return err
	}))
	return socket
}

// talker is a pod on a node that says its name to who connects to port 9001.
func talker(name, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers: [{name: t, image: "%[3]s", command: [nc, -ll, -p, "9001", -e, echo, %[1]s]}]
---
`, name, node, cluster.BusyboxRef)
}

// answers asks from a node until the answer is what is wanted.
func (t lab) answers(n *cluster.Node, network, address, want string) {
	t.Helper()
	t.eventually(func() error {
		got, err := askAt(t.Context(), n, network, address)
		if err != nil || got != want {
			return fmt.Errorf("%s %s from %s: %q, %v; want %q", network, address, n.Name, got, err, want)
		}
		return nil
	})
}

func askAt(ctx context.Context, n *cluster.Node, network, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if network == "udp" {
		if _, err := conn.Write([]byte("hello")); err != nil {
			return "", err
		}
	}
	buffer := make([]byte, 100)
	count, err := conn.Read(buffer)
	return strings.TrimSpace(string(buffer[:count])), err
}

// TestNode04NodePortOnLocalhost reaches an endpoint on another node by a node port
// at 127.0.0.1.
func TestNode04NodePortOnLocalhost(test *testing.T) {
	test.Parallel()
	t := lab{test}
	a := cluster.Start(test)
	b := t.agent(a)
	t.start(b)
	t.must(b.ImportBusybox())
	t.apply(a, talker("onb", b.Name)+`
apiVersion: v1
kind: Service
metadata: {name: cl2}
spec: {type: NodePort, selector: {app: onb}, ports: [{name: t, port: 9001, nodePort: 30193}]}
---
apiVersion: v1
kind: Service
metadata: {name: machine}
spec: {type: NodePort, ports: [{name: u, port: 9000, protocol: UDP, nodePort: 30194}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: machine, labels: {kubernetes.io/service-name: machine}}
addressType: IPv4
ports: [{name: u, port: 9000, protocol: UDP}]
endpoints: [{addresses: [`+b.IP+`]}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: onb}, ports: [{name: t, port: 9001, nodePort: 30195}]}
`)
	t.podIP(a, "onb")
	echo := t.packets(b, ":9000") // as a pod of the host's network there
	go func() {
		buffer := make([]byte, 100)
		for {
			count, from, err := echo.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(buffer[:count], from)
		}
	}()
	defer echo.Close()
	for _, address := range []string{"127.0.0.1", a.IP} {
		t.answers(a, "tcp", address+":30193", "onb")
		t.answers(a, "udp", address+":30194", "hello")
		t.answers(a, "tcp", address+":30195", "onb") // the node itself may use any endpoint
	}
}

// TestNode07AddressFlap takes a node's address away and gives it back.
func TestNode07AddressFlap(test *testing.T) {
	test.Parallel()
	t := lab{test}
	n := cluster.Start(test)
	t.must(n.ImportBusybox())
	t.apply(n, talker("pod", n.Name)+talker("client", n.Name))
	ip := t.podIP(n, "pod")
	t.podIP(n, "client")
	t.answers(n, "tcp", ip+":9001", "pod")
	t.inside(n, fmt.Sprintf("ip addr del %[1]s/16 dev eth0; ip addr add %[1]s/16 dev eth0; ip route add default via 10.99.0.1", n.IP))
	t.answers(n, "tcp", ip+":9001", "pod")
	t.inside(n, "ip route flush proto boot; ip addr add 10.99.0.77/32 dev lo; ip link set eth0 down; ip link set eth0 up; ip route add default via 10.99.0.1")
	t.answers(n, "tcp", ip+":9001", "pod")
	t.eventually(func() error {
		out, err := n.Kubectl(t.Context(), "exec", "client", "-c", "t", "--", "nslookup", "kubernetes.default.svc.cluster.local")
		if err != nil {
			return fmt.Errorf("a pod finds no names: %s", out)
		}
		return nil
	})
	if out := t.kubectl(n, "exec", "client", "-c", "t", "--", "nc", "-w", "5", ip, "9001"); out != "pod" {
		t.Errorf("pod to pod: %q", out)
	}
}

// TestNode09SlowName asks for a name that the upstream never answers, and for
// others beside it.
func TestNode09SlowName(test *testing.T) {
	test.Parallel()
	t := lab{test}
	network := cluster.StartNetwork(test)
	n, err := network.NewNode()
	t.must(err)
	t.Cleanup(func() { t.close(n) })
	resolvConf := filepath.Join(n.Dir, "resolv.conf")
	t.must(os.WriteFile(resolvConf, []byte("nameserver "+n.IP+"\n"), 0o600))
	n.Args = append(n.Args, "--resolv-conf", resolvConf)
	packets := t.packets(n, n.IP+":53")
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = (&dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
			if strings.EqualFold(request.Question[0].Name, "drop.example.com.") {
				return
			}
			response := new(dns.Msg).SetReply(request)
			record, _ := dns.NewRR(request.Question[0].Name + " 60 IN A 203.0.113.9")
			response.Answer = []dns.RR{record}
			_ = w.WriteMsg(response)
		})}).ActivateAndServe()
	}()
	t.Cleanup(func() { packets.Close(); <-served })
	t.start(n)
	lookUp := func(name string) (*dns.Msg, error) {
		conn, err := n.Dial(t.Context(), "udp", "10.43.0.10:53")
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		client := &dns.Client{Timeout: 10 * time.Second}
		response, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
		return response, err
	}
	dropped := make(chan error, 1)
	go func() {
		response, err := lookUp("drop.example.com.")
		if err == nil && response.Rcode != dns.RcodeServerFailure {
			err = errors.New(response.String())
		}
		dropped <- err
	}()
	for i := 0; ; i++ {
		select {
		case err := <-dropped:
			if err != nil {
				t.Errorf("the name that nobody answers: %v", err)
			}
			if i < 2 {
				t.Errorf("only %d other names were asked meanwhile", i)
			}
			return
		case <-time.After(300 * time.Millisecond): // as the case has it
			response, err := lookUp(fmt.Sprintf("fast%d.example.com.", i))
			if err != nil || len(response.Answer) != 1 {
				t.Errorf("another name: %v, %v", response, err)
			}
		}
	}
}

// TestNode12PTROfHeadlessEndpoint finds the name of a pod behind a headless service.
func TestNode12PTROfHeadlessEndpoint(test *testing.T) {
	test.Parallel()
	t := lab{test}
	n := cluster.Start(test)
	data, err := os.ReadFile("testdata/node-12-ptr-of-headless-endpoint-missing.yaml")
	t.must(err)
	t.apply(n, string(data))
	t.kubectl(n, "rollout", "status", "deployment/hl", "--timeout=120s")
	ip := t.kubectl(n, "get", "pods", "-l", "app=hl", "-o", "jsonpath={.items[0].status.podIP}")
	reverse, err := dns.ReverseAddr(ip)
	t.must(err)
	want := strings.ReplaceAll(ip, ".", "-") + ".hl.default.svc.cluster.local."
	t.eventually(func() error {
		conn, err := n.Dial(t.Context(), "udp", "10.43.0.10:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		response, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion(reverse, dns.TypePTR), &dns.Conn{Conn: conn})
		if err != nil {
			return err
		}
		if len(response.Answer) != 1 || response.Answer[0].(*dns.PTR).Ptr != want {
			return fmt.Errorf("%v, want %s", response, want)
		}
		return nil
	})
}

// TestNode19NodeIPIsOwnPodGateway starts a node before its address is there, and
// then gives it another.
func TestNode19NodeIPIsOwnPodGateway(test *testing.T) {
	test.Parallel()
	t := lab{test}
	server := cluster.Start(test)
	t.must(server.ImportBusybox())
	agent := t.agent(server)
	given := slices.Index(agent.Args, "--node-ip") // by the harness
	agent.Args = slices.Delete(agent.Args, given, given+2)
	t.start(agent)
	t.must(agent.ImportBusybox())
	t.apply(server, talker("here", server.Name)+talker("there", agent.Name))
	t.apply(server, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: host}\nspec: {nodeName: %s, hostNetwork: true, terminationGracePeriodSeconds: 0, containers: [{name: c, image: %q, command: [sleep, '10000']}]}\n", agent.Name, cluster.BusyboxRef))
	t.podIP(server, "here")
	if got := t.podIP(server, "host"); got != agent.IP {
		t.Errorf("a pod of the host's network is at %s", got)
	}
	there := t.podIP(server, "there")
	t.answers(server, "tcp", there+":9001", "there")

	t.must(agent.Stop())
	t.inside(agent, "ip addr flush dev eth0 scope global")
	t.must(os.RemoveAll(filepath.Join(agent.DataDir(), "agent", "node-address"))) // not even what it was is known
	t.must(agent.Start())
	t.eventually(func() error {
		if !strings.Contains(agent.LogTail(), "waiting for one") {
			return errors.New("the agent does not say that it waits")
		}
		return nil
	})
	t.inside(agent, fmt.Sprintf("ip addr add %s/16 dev eth0; ip route add default via 10.99.0.1", agent.IP))
	t.must(agent.WaitReady(t.Context()))
	hasAddress := func(want string) {
		t.Helper()
		t.eventually(func() error {
			got, err := server.Kubectl(t.Context(), "get", "node", agent.Name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
			if err != nil || got != want {
				return fmt.Errorf("the node's address is %s (%v), want %s", got, err, want)
			}
			return nil
		})
	}
	hasAddress(agent.IP)
	t.answers(server, "tcp", there+":9001", "there")

	const next = "10.99.0.123"
	t.inside(agent, fmt.Sprintf("ip addr del %s/16 dev eth0; ip addr add %s/16 dev eth0; ip route add default via 10.99.0.1", agent.IP, next))
	hasAddress(next)
	t.eventually(func() error {
		if got := t.podIP(server, "host"); got != next {
			return fmt.Errorf("a pod of the host's network is at %s, want %s", got, next)
		}
		return nil
	})
	t.answers(server, "tcp", there+":9001", "there")
	here := t.podIP(server, "here")
	t.answers(agent, "tcp", here+":9001", "here")
	if out := t.inside(agent, "ip -d link show orch-vxlan"); !strings.Contains(out, "local "+next) {
		t.Errorf("the tunnel is at another address: %s", out)
	}
}
