// Command up starts a cluster of several nodes on this machine, each in a
// network namespace of its own, and takes it down when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"orch/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	servers := flag.Int("servers", 1, "number of servers")
	agents := flag.Int("agents", 2, "number of agents")
	images := flag.String("images", "", "folder of image archives that every node imports at its start")
	flag.Parse() // what is left goes to every node
	if err := run(ctx, *servers, *agents, *images, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, servers, agents int, images string, args []string) (err error) {
	if servers < 1 {
		return fmt.Errorf("-servers %d: a cluster needs one at least", servers)
	}
	network, err := cluster.NewNetwork()
	if err != nil {
		return err
	}
	var nodes []*cluster.Node
	defer func() {
		fmt.Println("taking the cluster down")
		for _, n := range nodes {
			err = errors.Join(err, n.Close())
		}
		err = errors.Join(err, network.Close())
	}()
	for i := range servers + agents {
		node, err := newNode(network, nodes, i < servers, args)
		if err != nil {
			return err
		}
		nodes = append(nodes, node)
		if err := linkImages(images, node); err != nil {
			return err
		}
		if err := node.Start(); err != nil {
			return err
		}
		started, cancel := context.WithTimeout(ctx, time.Minute)
		err = node.WaitReady(started)
		cancel()
		if err != nil {
			return err
		}
		fmt.Printf("%s is Ready at %s: network namespace %s, log %s\n", node.Name, node.IP, node.Namespace, node.LogFile())
	}
	return serve(ctx, nodes[0])
}

func newNode(network *cluster.Network, nodes []*cluster.Node, server bool, args []string) (*cluster.Node, error) {
	switch {
	case len(nodes) == 0:
		return network.NewNode(args...)
	case server:
		return network.NewServer(nodes[0], args...)
	}
	return network.NewAgent(nodes[0], args...)
}

func linkImages(from string, node *cluster.Node) error {
	archives, err := filepath.Glob(filepath.Join(from, "*.tar"))
	if from == "" || err != nil {
		return err
	}
	to := filepath.Join(node.DataDir(), "images")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, archive := range archives {
		if err := os.Symlink(archive, filepath.Join(to, filepath.Base(archive))); err != nil {
			return err
		}
	}
	return nil
}

// serve carries connections from this machine to the server, which lives in
// another network namespace, until ctx ends.
func serve(ctx context.Context, server *cluster.Node) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config, err := clientcmd.LoadFromFile(server.Kubeconfig)
	if err != nil {
		return err
	}
	for _, c := range config.Clusters {
		c.Server = "https://" + listener.Addr().String()
	}
	path := filepath.Join(server.Dir, "outside.yaml")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%s\nCtrl-C (or kill %d) takes the cluster down.\n", path, os.Getpid())
	var carriers sync.WaitGroup
	defer carriers.Wait()
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		carriers.Go(func() { carry(ctx, conn, server) })
	}
}

// carry copies both ways until either side or ctx ends.
func carry(ctx context.Context, conn net.Conn, server *cluster.Node) {
	defer conn.Close()
	there, err := server.Dial(ctx, "tcp", "127.0.0.1:6443")
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return
	}
	defer there.Close()
	defer context.AfterFunc(ctx, func() { conn.Close(); there.Close() })()
	var back sync.WaitGroup
	back.Go(func() {
		defer conn.Close()
		_, _ = io.Copy(conn, there) // either side may close at any time
	})
	_, _ = io.Copy(there, conn)
	there.Close()
	back.Wait()
}
