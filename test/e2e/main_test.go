// Package e2e tries a built orch as its users would: with kubectl, real
// containers and real networks. All tests share one server unless they break it.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"orch/test/cluster"
)

var (
	network *cluster.Network
	box     *cluster.Node // the shared server
)

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: the end-to-end tests need root (containers, namespaces, iptables)")
		return 0, nil
	}
	if network, err = cluster.NewNetwork(); err != nil {
		return 1, err
	}
	defer network.Close()
	if box, err = network.NewNode(); err != nil {
		return 1, err
	}
	defer func() {
		if code != 0 {
			fmt.Printf("end of the shared server's log:\n%s\n", box.LogTail())
		}
		if closeErr := box.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := box.Start(); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := box.WaitReady(ctx); err != nil {
		return 1, err
	}
	if err := box.ImportBusybox(); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// ownNode starts a server for one test alone.
func ownNode(t *testing.T, args ...string) *cluster.Node {
	t.Helper()
	n := unstarted(t, args...)
	start(t, n)
	if err := n.ImportBusybox(); err != nil {
		t.Fatal(err)
	}
	return n
}

// unstarted makes a node that is removed when the test ends.
func unstarted(t *testing.T, args ...string) *cluster.Node {
	t.Helper()
	n, err := network.NewNode(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of %s's log:\n%s", n.Name, n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// start starts the node and waits until it is Ready.
func start(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}
