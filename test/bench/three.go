package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"orch/test/cluster"
)

// threeServers compares a control plane of three servers with a single one, all
// on this machine's processors, and kills the leader.
func (b *bench) threeServers(ctx context.Context) error {
	return b.with(ctx, func(first *cluster.Node) (err error) {
		crowds := make([]crowd, 3)
		if crowds[0], err = newCrowd(first, clients); err != nil {
			return err
		}
		if err := prepare(ctx, crowds[0][0], "three", true); err != nil {
			return err
		}
		if _, err := crowds[0].createPods(ctx, "three", 2000); err != nil {
			return err
		}
		single, alone, err := b.createMany(ctx, crowds[0], "single", first)
		if err != nil {
			return err
		}
		nodes := []*cluster.Node{first}
		for i := range 2 {
			node, err := b.network.NewServer(first, "--disable-agent", "--disable", "scheduler,controllers")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, node.Close()) }()
			if err := errors.Join(node.Start(), waitServing(ctx, node)); err != nil {
				return err
			}
			if crowds[i+1], err = newCrowd(node, clients); err != nil {
				return err
			}
			nodes = append(nodes, node)
		}
		if err := waitVoters(ctx, first); err != nil {
			return err
		}
		mixed := make(crowd, clients)
		for i := range mixed {
			mixed[i] = crowds[i%3][i]
		}
		for _, through := range []struct {
			name  string
			crowd crowd
		}{{"leader", crowds[0]}, {"follower", crowds[1]}, {"all-three", mixed}} {
			rate, cost, err := b.createMany(ctx, through.crowd, through.name, nodes...)
			if err != nil {
				return err
			}
			b.add("pod create/s, 3 servers, through "+through.name, "60 %", "%.0f (%.0f %% of one server's %.0f)", rate, 100*rate/single, single)
			b.add("CPU of all 3 servers per create, through "+through.name, "", "%d µs (one server alone: %d)", cost.Microseconds(), alone.Microseconds())
		}
		return b.failover(ctx, nodes, crowds)
	}, "--disable-agent", "--disable", "scheduler,controllers")
}

// createMany gives the rate at which pods are created, and the processors' time
// that each costs the servers: other work on the machine changes that less.
func (b *bench) createMany(ctx context.Context, c crowd, namespace string, servers ...*cluster.Node) (rate float64, cost time.Duration, err error) {
	const pods = 10_000
	if err := prepare(ctx, c[0], namespace, true); err != nil {
		return 0, 0, err
	}
	before, err := processorTime(servers)
	if err != nil {
		return 0, 0, err
	}
	if rate, err = c.createPods(ctx, namespace, pods); err != nil {
		return 0, 0, err
	}
	after, err := processorTime(servers)
	return rate, (after - before) / pods, err
}

func processorTime(servers []*cluster.Node) (sum time.Duration, err error) {
	for _, n := range servers {
		u, err := measureProcess(n.PID())
		if err != nil {
			return 0, err
		}
		sum += u.cpu
	}
	return sum, nil
}

// waitVoters waits until three servers have a vote.
func waitVoters(ctx context.Context, at *cluster.Node) error {
	for {
		out, err := at.Command(ctx, at.Orch, "member", "list", "--kubeconfig", at.Kubeconfig).CombinedOutput()
		if err == nil && strings.Count(string(out), "voter") == 2 {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no three servers: %s: %w", out, context.Cause(ctx))
		}
	}
}

// failover kills the leader and writes through another until that is taken.
func (b *bench) failover(ctx context.Context, nodes []*cluster.Node, crowds []crowd) error {
	if err := nodes[0].Kill(); err != nil {
		return err
	}
	began := time.Now()
	for i := 0; ; i++ {
		name := fmt.Sprint("after-", i)
		err := crowds[1][0].create(ctx, "/api/v1/namespaces/three/pods", samplePod("three", name))
		if err == nil {
			break
		}
		if ctx.Err() != nil || time.Since(began) > time.Minute {
			return err
		}
	}
	b.add("leader killed → write accepted", "2 s", "%.2f s", time.Since(began).Seconds())
	return nil
}
