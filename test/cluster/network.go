package cluster

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"
)

// Network is a bridge in a namespace of its own, from which all nodes can be reached.
type Network struct {
	Namespace string
	id        string // in the names of all namespaces: several tests run side by side
	nodes     atomic.Int32
}

// StartNetwork makes a network that is gone with the test.
func StartNetwork(t testing.TB) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, namespaces and iptables are real here")
	}
	network, err := NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return network
}

// NewNetwork makes the bridge. Close removes it.
func NewNetwork() (*Network, error) {
	id := fmt.Sprintf("%d-%04x", os.Getpid(), rand.N(1<<16))
	n := &Network{Namespace: "orch-hub-" + id, id: id}
	return n, run(
		"ip netns add "+n.Namespace,
		"ip -n "+n.Namespace+" link set lo up",
		"ip -n "+n.Namespace+" link add br0 type bridge",
		"ip -n "+n.Namespace+" addr add 10.99.0.1/16 dev br0",
		"ip -n "+n.Namespace+" link set br0 up",
	)
}

// Close removes the bridge and its namespace.
func (n *Network) Close() error { return run("ip netns del " + n.Namespace) }

// connect makes a namespace with the address on eth0, joined to the bridge.
func (n *Network) connect(namespace, veth, address string) error {
	return run(
		"ip netns add "+namespace,
		"ip -n "+namespace+" link set lo up",
		"ip -n "+n.Namespace+" link add "+veth+" type veth peer name eth0 netns "+namespace,
		"ip -n "+n.Namespace+" link set "+veth+" master br0 up",
		"ip -n "+namespace+" addr add "+address+"/16 dev eth0",
		"ip -n "+namespace+" link set eth0 up",
		"ip -n "+namespace+" route add default via 10.99.0.1",
	)
}

// dialIn makes a connection that belongs to the network namespace. A socket
// keeps the namespace it was made in, so the caller may use it from anywhere.
func dialIn(ctx context.Context, namespace, network, address string) (conn net.Conn, err error) {
	err = inNamespace(namespace, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// inNamespace runs do on a thread that is in the network namespace.
func inNamespace(namespace string, do func() error) (err error) {
	var inside sync.WaitGroup
	inside.Go(func() {
		// Never unlocked: the thread that went into the namespace ends with the
		// goroutine.
		goruntime.LockOSThread()
		var handle netns.NsHandle
		if handle, err = netns.GetFromName(namespace); err != nil {
			return
		}
		defer handle.Close()
		if err = netns.Set(handle); err == nil {
			err = do()
		}
	})
	inside.Wait()
	if err != nil {
		return fmt.Errorf("in network namespace %s: %w", namespace, err)
	}
	return nil
}

func run(commands ...string) error {
	for _, c := range commands {
		words := strings.Fields(c)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// Listen listens beside the bridge, at 10.99.0.1: all nodes reach it.
func (n *Network) Listen(port int) (net.Listener, error) {
	var listener net.Listener
	err := inNamespace(n.Namespace, func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf("10.99.0.1:%d", port))
		return err
	})
	return listener, err
}
