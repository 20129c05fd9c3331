package load

import (
	"context"
	"errors"
	"sync"

	"orch/test/cluster"
)

// Cluster is a control plane of three servers without nodes of their own, and
// two agents.
type Cluster struct {
	Servers, Agents []*cluster.Node
}

// NewCluster starts it, one node after the other, with the given executable, or
// the one under test if that is empty. Close must be called also after an error.
func NewCluster(ctx context.Context, network *cluster.Network, orch string) (*Cluster, error) {
	c := &Cluster{}
	for i := range 3 {
		var node *cluster.Node
		var err error
		if i == 0 {
			node, err = network.NewNode("--disable-agent")
		} else {
			node, err = network.NewServer(c.Servers[0], "--disable-agent")
		}
		if err != nil {
			return c, err
		}
		c.Servers = append(c.Servers, node)
		if err := startNode(node, orch); err != nil {
			return c, err
		}
		if err := c.Servers[0].WaitVoters(ctx, i+1); err != nil {
			return c, err
		}
	}
	for range 2 {
		node, err := network.NewAgent(c.Servers[0])
		if err != nil {
			return c, err
		}
		c.Agents = append(c.Agents, node)
		if err := startNode(node, orch); err != nil {
			return c, err
		}
	}
	for _, node := range c.Agents {
		if err := node.WaitReady(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func startNode(node *cluster.Node, orch string) error {
	if orch != "" {
		node.Orch = orch
	}
	return node.Start()
}

// Nodes are all of them.
func (c *Cluster) Nodes() []*cluster.Node {
	return append(append([]*cluster.Node{}, c.Servers...), c.Agents...)
}

// Close removes all nodes with what they left.
func (c *Cluster) Close() error {
	nodes := c.Nodes()
	errs := make([]error, len(nodes))
	var closing sync.WaitGroup
	for i, node := range nodes {
		closing.Go(func() { errs[i] = node.Close() })
	}
	closing.Wait()
	return errors.Join(errs...)
}
