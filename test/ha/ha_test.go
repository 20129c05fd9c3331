// Package ha tests a control plane of three servers, real processes each in a
// network namespace of its own: any one may die.
package ha

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

// patience is what anything may take on a busy machine.
const patience = 2 * time.Minute

// servers is three servers without agents.
type servers []*cluster.Node

func start(t *testing.T) servers {
	t.Helper()
	return startPrepared(t, func(*cluster.Node) {})
}

// startPrepared has each server prepared before its first start.
func startPrepared(t *testing.T, prepare func(*cluster.Node)) servers {
	t.Helper()
	network := cluster.StartNetwork(t)
	first, err := network.NewNode("--disable-agent")
	if err == nil {
		prepare(first)
	}
	all := servers{launch(t, first, err)}
	for range 2 {
		next, err := network.NewServer(first, "--disable-agent")
		if err == nil {
			prepare(next)
		}
		all = append(all, launch(t, next, err))
	}
	all.await(t, "3 servers with a vote", func() bool {
		out := all.members(t, first)
		return strings.Count(out, "voter")+strings.Count(out, "leader") == 3
	})
	return all
}

func launch(t *testing.T, n *cluster.Node, err error) *cluster.Node {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, n)
	t.Logf("%s is ready after %v", n.Name, time.Since(began).Round(time.Millisecond))
	return n
}

func awaitReady(t *testing.T, n *cluster.Node) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if c, err := clientOf(n); err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := c.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			cancel()
			if err == nil {
				return
			}
		}
		select {
		case <-n.Exited():
			t.Fatalf("%s ended:\n%s", n.Name, n.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready:\n%s", n.Name, n.LogTail())
		}
	}
}

func clientOf(n *cluster.Node) (*kubernetes.Clientset, error) {
	config, err := n.Config()
	if err != nil {
		return nil, err
	}
	config.Timeout = 20 * time.Second
	// Each client its own connection, so that a broken one is no other's.
	return kubernetes.NewForConfig(rest.CopyConfig(config))
}

func client(t *testing.T, n *cluster.Node) *kubernetes.Clientset {
	t.Helper()
	c, err := clientOf(n)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s servers) members(t *testing.T, at *cluster.Node) string {
	t.Helper()
	out, err := at.Command(t.Context(), at.Orch, "member", "list", "--kubeconfig", at.Kubeconfig).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s: %v", out, err)
	}
	return string(out)
}

func (s servers) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); <-time.After(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s:\n%s", what, s.members(t, s[0]))
		}
	}
}

// leader waits until server at knows one that leads, and gives it.
func (s servers) leader(t *testing.T, at *cluster.Node) (leader *cluster.Node) {
	t.Helper()
	s.await(t, "leader", func() bool {
		for _, line := range strings.Split(s.members(t, at), "\n") {
			for _, n := range s {
				if fields := strings.Fields(line); len(fields) > 2 && fields[0] == n.Name && fields[2] == "leader" {
					leader = n
				}
			}
		}
		return leader != nil
	})
	return leader
}

func (s servers) others(n *cluster.Node) (others servers) {
	for _, o := range s {
		if o != n {
			others = append(others, o)
		}
	}
	return others
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: map[string]string{"a": "b"}}
}

// writeUntilTaken gives the time until a write through n succeeds.
func writeUntilTaken(t *testing.T, n *cluster.Node, name string) time.Duration {
	t.Helper()
	return writeThrough(t, client(t, n), n, name)
}

func writeThrough(t *testing.T, c *kubernetes.Clientset, n *cluster.Node, name string) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := c.CoreV1().ConfigMaps("default").Create(ctx, configMap(name), metav1.CreateOptions{})
		cancel()
		// A write whose outcome was not known may have happened.
		if err == nil || apierrors.IsAlreadyExists(err) {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			t.Errorf("no write through %s: %v", n.Name, err)
			return time.Since(began)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func endpoints(t *testing.T, n *cluster.Node) int {
	slice, err := client(t, n).DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		return 0
	}
	return len(slice.Endpoints)
}

func TestRemoveMember(t *testing.T) {
	all := start(t)
	leader := all.leader(t, all[0])
	gone := all.others(leader)[1]
	out, err := leader.Command(t.Context(), leader.Orch, "member", "remove", "--kubeconfig", leader.Kubeconfig, gone.Name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	select {
	case <-gone.Exited():
	case <-time.After(patience):
		t.Fatal("a removed server goes on")
	}
	if log := gone.LogTail(); !strings.Contains(log, "removed from the cluster") {
		t.Errorf("it does not say why:\n%s", log)
	}
	writeUntilTaken(t, leader, "after")
}

func (s servers) run(t *testing.T, n *cluster.Node, args ...string) string {
	t.Helper()
	out, err := n.Command(t.Context(), n.Orch, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("orch %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
